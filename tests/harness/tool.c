/* The program in the test images: static, so that an image needs nothing else.
 *   tool [sleep]          until SIGTERM (the sandbox container)
 *   tool ls DIR           names, one a line
 *   tool cat FILE
 *   tool write FILE TEXT  append TEXT and a newline
 *   tool sum FILE...      "<bytes> <FNV-1a 64>" of each file's content
 *   tool reread FILE N    read FILE N times, dropping it from the page cache; "ok N" or the first difference
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char buffer[1 << 20];

static void leave(int number) { (void)number; _exit(0); }

static int fail(const char *path) { fprintf(stderr, "%s: %s\n", path, strerror(errno)); return 1; }

static int sum(const char *path, unsigned long long *bytes, unsigned long long *hash) {
    int file = open(path, O_RDONLY);
    if (file < 0) return fail(path);
    posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
    *bytes = 0;
    *hash = 1469598103934665603ULL;
    ssize_t got;
    while ((got = read(file, buffer, sizeof buffer)) > 0) {
        for (ssize_t i = 0; i < got; i++) *hash = (*hash ^ (unsigned char)buffer[i]) * 1099511628211ULL;
        *bytes += got;
    }
    close(file);
    return got < 0 ? fail(path) : 0;
}

int main(int count, char **args) {
    const char *command = count > 1 ? args[1] : "sleep";
    signal(SIGTERM, leave);
    signal(SIGINT, leave);
    if (!strcmp(command, "ls")) {
        DIR *directory = opendir(count > 2 ? args[2] : "/");
        if (!directory) return fail(args[2]);
        for (struct dirent *entry; (entry = readdir(directory));)
            if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, "..")) puts(entry->d_name);
    } else if (!strcmp(command, "cat") && count > 2) {
        int file = open(args[2], O_RDONLY);
        if (file < 0) return fail(args[2]);
        ssize_t got;
        while ((got = read(file, buffer, sizeof buffer)) > 0)
            if (write(1, buffer, got) != got) return fail("stdout");
        return got < 0 ? fail(args[2]) : 0;
    } else if (!strcmp(command, "write") && count > 3) {
        int file = open(args[2], O_CREAT | O_WRONLY | O_APPEND, 0644);
        if (file < 0 || dprintf(file, "%s\n", args[3]) < 0) return fail(args[2]);
    } else if (!strcmp(command, "sum")) {
        for (int i = 2; i < count; i++) {
            unsigned long long bytes, hash;
            if (sum(args[i], &bytes, &hash)) return 1;
            printf("%llu %016llx\n", bytes, hash);
        }
    } else if (!strcmp(command, "reread") && count > 3) {
        unsigned long long bytes, hash, first_bytes = 0, first_hash = 0;
        for (int i = 0; i < atoi(args[3]); i++) {
            if (sum(args[2], &bytes, &hash)) return 1;
            if (i && (bytes != first_bytes || hash != first_hash)) {
                fprintf(stderr, "read %d differs: %llu %016llx\n", i, bytes, hash);
                return 1;
            }
            first_bytes = bytes;
            first_hash = hash;
        }
        printf("ok %s\n", args[3]);
    } else if (!strcmp(command, "sleep")) {
        puts("sleeping");
        fflush(stdout);
        for (;;) pause();
    } else {
        fprintf(stderr, "unknown: %s\n", command);
        return 2;
    }
    return 0;
}
