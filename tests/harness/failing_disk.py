"""A small ext4 on a disk that fails with EIO when it is told to: a loop device over a file of a FUSE file system."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

from harness import failing_disk_server
from harness.processes import OwnedProcess, run
from harness.waiting import until


class FailingDisk:
    """Mounted at ``path``. Needs root. There is no journal, so nothing but what failed stays broken afterwards.

    What is in the page cache is read without the disk: ``forget`` it first, which needs that nobody has it mapped.
    """

    def __init__(self, directory: Path, *, megabytes: int = 128) -> None:
        self.path = directory / "disk"
        self._server_point = directory / "server"
        self._orders = directory / "orders"
        self._backing = directory / "backing"
        for path in (self.path, self._server_point, self._orders):
            path.mkdir(parents=True)
        with self._backing.open("wb") as file:
            file.truncate(megabytes << 20)
        command = [sys.executable, "-P", failing_disk_server.__file__, self._server_point, self._backing, self._orders]
        self._server = OwnedProcess(command, directory / "disk.log")
        self._loop = ""

    def __enter__(self) -> Self:
        self._server.start().wait_until((self._server_point / "disk").exists, "the disk is there")
        self._loop = run("losetup", "-f", "--show", self._server_point / "disk").strip()
        try:
            run("mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", self._loop)
            run("mount", "-o", "errors=continue", self._loop, self.path)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.works()
        run("umount", self.path, check=False)
        run("losetup", "-d", self._loop, check=False)
        run("umount", self._server_point, check=False)
        self._server.stop()

    def works(self) -> None:
        for order in ("reads", "writes"):
            (self._orders / order).unlink(missing_ok=True)

    def fails_reads(self) -> None:
        (self._orders / "reads").touch()

    def fails_writes(self) -> None:
        (self._orders / "writes").touch()

    @contextmanager
    def failing(self, *what: str) -> Iterator[None]:
        """``reads``, ``writes`` or both fail during the block."""
        for order in what:
            (self._orders / order).touch()
        try:
            yield
        finally:
            self.works()

    def forget(self, pattern: str = "**/*") -> None:
        """Take files out of the page cache: the next reader of them asks the disk."""
        for path in self.path.glob(pattern):
            with suppress(IsADirectoryError, FileNotFoundError):
                descriptor = os.open(path, os.O_RDWR)
                try:
                    with suppress(OSError):  # an earlier write has failed, as it was told to
                        os.fsync(descriptor)
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                finally:
                    os.close(descriptor)


def until_forgotten(disk: FailingDisk, pattern: str, offset: int = 0) -> None:
    """``forget`` until a page is really gone: one that is being written back stays a moment longer."""

    def is_gone() -> bool:
        disk.forget(pattern)
        (path,) = disk.path.glob(pattern)
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.preadv(descriptor, [bytearray(1)], offset, os.RWF_NOWAIT)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    until(is_gone, "the page cache has forgotten")
