"""``fastpull-node ls``: files of an image, from its bootstrap alone."""

from __future__ import annotations

import asyncio
import os
import stat
import sys
import time
from collections.abc import Iterator

import msgspec

from fastpull.cache.digest import Digest
from fastpull.config.node import NodeSettings
from fastpull.fuse_client.chain_files import ChainFiles, unpack
from fastpull.fuse_client.cli.images import ready_chain, warm_progress
from fastpull.fuse_client.errors import ImageNotFoundError
from fastpull.fuse_client.fetch.client import ProxyClient
from fastpull.image.erofs.reader import Bootstrap, Inode

_MAX_LINKS = 40  # as the kernel's ELOOP


class FileInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the JSON answer."""

    name: str
    type: str
    mode: str  # octal
    uid: int
    gid: int
    size: int
    mtime_ns: int
    nlink: int
    target: str = ""  # of a symlink
    device: str = ""  # major:minor


def ls(settings: NodeSettings, image: str, platform: str, path: str, *, long: bool, as_json: bool) -> int:
    """Run the command; return the exit code."""
    with Bootstrap.open(asyncio.run(_bootstrap(settings, image, platform))) as bootstrap:
        inode = find(bootstrap, os.fsencode(path))
        if inode is None:
            raise ImageNotFoundError(f"{image} has no {path}", remedy=f"fastpull-node ls {image} / shows what it has")
        files = list(listing(bootstrap, inode, os.path.basename(path.rstrip("/")) or "/"))  # noqa: PTH119 - no path of ours
    if as_json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(files)).decode() + "\n")
    elif long:
        sys.stdout.writelines(line + "\n" for line in long_lines(files))
    else:
        sys.stdout.writelines(printable(file.name) + "\n" for file in files)
    return 0


async def _bootstrap(settings: NodeSettings, image: str, platform: str) -> bytes:
    async with ProxyClient.open(settings) as client:
        with warm_progress() as progress:
            state = await ready_chain(client, image, platform, progress)
        chain = Digest.parse(state.chain_id)
        local = ChainFiles(settings.root)
        if (record := local.record(chain)) is not None and record.state.bootstrap_digest == state.bootstrap_digest:
            return local.bootstrap(chain).read_bytes()
        encoding, raw = await client.artifact(chain, "bootstrap", state.bootstrap_bytes + 4096)
        return b"".join(unpack(chain, "bootstrap", encoding, raw, state.bootstrap_digest, state.bootstrap_bytes))


def find(bootstrap: Bootstrap, path: bytes) -> Inode | None:
    """The inode at ``path``, symlinks followed inside of the image. None = there is none, or a loop."""
    walked: list[Inode] = [bootstrap.inode(bootstrap.root)]
    names = path.split(b"/")[::-1]
    links = 0
    while names:
        name = names.pop()
        here = walked[-1]
        if name in (b"", b"."):
            continue
        if name == b"..":
            walked = walked[:-1] or walked
            continue
        found = bootstrap.child(here, name) if here.is_directory else None
        if found is None:
            return None
        if found.is_symlink:
            links += 1
            if links > _MAX_LINKS:
                return None
            target = bootstrap.readlink(found)
            if target.startswith(b"/"):
                walked = walked[:1]
            names += target.split(b"/")[::-1]
        else:
            walked.append(found)
    return walked[-1]


def listing(bootstrap: Bootstrap, inode: Inode, name: str) -> Iterator[FileInfo]:
    """A directory's entries in byte order, or the file itself."""
    if not inode.is_directory:
        yield _info(bootstrap, inode, name)
        return
    for entry in bootstrap.listdir(inode):
        yield _info(bootstrap, bootstrap.inode(entry.nid), os.fsdecode(entry.name))


def _info(bootstrap: Bootstrap, inode: Inode, name: str) -> FileInfo:
    major, minor = inode.rdev
    return FileInfo(
        name=_text(name),
        type=_TYPES.get(stat.S_IFMT(inode.mode), "unknown"),
        mode=f"{stat.S_IMODE(inode.mode):04o}",
        uid=inode.uid,
        gid=inode.gid,
        size=inode.size,
        mtime_ns=inode.mtime_ns,
        nlink=inode.nlink,
        target=_text(os.fsdecode(bootstrap.readlink(inode))) if inode.is_symlink else "",
        device=f"{major}:{minor}" if inode.rdev != (0, 0) else "",
    )


_TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}
_LETTERS = {
    "file": "-",
    "directory": "d",
    "symlink": "l",
    "character device": "c",
    "block device": "b",
    "fifo": "p",
    "socket": "s",
}


def long_lines(files: list[FileInfo]) -> Iterator[str]:
    """As ``ls -l`` shows them, times in UTC."""
    rows = [
        (
            _LETTERS.get(file.type, "?") + stat.filemode(int(file.mode, 8))[1:],
            str(file.nlink),
            str(file.uid),
            str(file.gid),
            file.device.replace(":", ", ") or str(file.size),
            time.strftime("%Y-%m-%d %H:%M", time.gmtime(file.mtime_ns // 10**9)),
            printable(file.name) + (f" -> {printable(file.target)}" if file.target else ""),
        )
        for file in files
    ]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(5)]
    for mode, nlink, uid, gid, size, when, name in rows:
        yield (f"{mode} {nlink:>{widths[1]}} {uid:>{widths[2]}} {gid:>{widths[3]}} {size:>{widths[4]}} {when} {name}")


def _text(name: str) -> str:
    """Names that are no UTF-8 can not stand in JSON: their bytes as ``\\xNN``."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def printable(name: str) -> str:
    """A name from an image must not move the cursor of whoever looks."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
