"""mount(2) and umount2(2) in a process of their own, so that none can hold up or outlive the daemon.

An EROFS mount opens its device on our own FUSE mount, and an unmount may wait for reads in flight: both wait
for answers that only the daemon can give. In a thread of the daemon such a wait is fatal: a daemon that is
killed in that moment can not finish dying (the thread sits in the kernel), keeps its lock, and so keeps away
the successor whose answer the thread waits for. In a child, only the child waits.

The command line is the request; the answer is the exit status and, for 1, ``ERRNO REASON`` on standard output:

    erofs-file BOOTSTRAP DEVICE TARGET OPTIONS
    erofs-loop BOOTSTRAP DEVICE TARGET OPTIONS
    unmount TARGET FLAGS
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from fastpull.fuse_client.drivers import loop, mounts
from fastpull.fuse_client.drivers.errors import MountError
from fastpull.fuse_client.drivers.mounts import MountFlag, UnmountFlag


def _with_device(device: Path, options: str) -> str:
    return ",".join(filter(None, [options, f"device={device}"]))


def _erofs_file(bootstrap: str, device: str, target: str, options: str) -> None:
    mounts.mount(bootstrap, Path(target), "erofs", MountFlag.READ_ONLY, _with_device(Path(device), options))


def _erofs_loop(bootstrap: str, device: str, target: str, options: str) -> None:
    with loop.attached(Path(bootstrap)) as metadata, loop.attached(Path(device)) as data:
        mounts.mount(metadata, Path(target), "erofs", MountFlag.READ_ONLY, _with_device(data, options))


def _unmount(target: str, flags: str) -> None:
    mounts.unmount(Path(target), UnmountFlag(int(flags)))


_VERBS: dict[str, Callable[..., None]] = {
    "erofs-file": _erofs_file,
    "erofs-loop": _erofs_loop,
    "unmount": _unmount,
}


def main(argv: Sequence[str]) -> int:
    os.chdir("/")  # a child that waits must not keep a directory busy
    try:
        _VERBS[argv[1]](*argv[2:])
    except MountError as exc:
        sys.stdout.write(f"{exc.code} {exc}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
