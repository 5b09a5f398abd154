"""What this kernel can, found out by doing it: version numbers lie where vendors backport or leave out."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import struct
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from fastpull.fuse_client.drivers import mounting
from fastpull.fuse_client.drivers.errors import MountError
from fastpull.fuse_client.drivers.mounts import UnmountFlag, unmount
from fastpull.fuse_client.session.errors import SessionError
from fastpull.fuse_client.session.fuse_mount import mount_fuse, read_init
from fastpull.fuse_client.session.protocol import Init, InitFlag

_BLOCK = 4096
_DEVICE_BLOCKS = 1


class KernelFeatures(msgspec.Struct, frozen=True, kw_only=True):
    """What the drivers need to know of the kernel; also for ``status`` and ``doctor``."""

    release: str
    fuse_minor: int  # of FUSE 7.x; 0 = there is none
    fuse_resend: bool  # requests that a killed daemon left open are sent again: Linux 6.9
    fuse_problem: str = ""  # why there is no FUSE
    erofs_file_backed: bool  # EROFS mounts files: Linux 6.12
    erofs_directio: bool  # ... and reads them past their page cache
    erofs_loop: bool  # EROFS with an extra device mounts loop devices: Linux 5.16; tried only without the above
    erofs_problem: str = ""  # why there is no EROFS, in the kernel's words

    @property
    def erofs_usable(self) -> bool:
        return self.erofs_file_backed or self.erofs_loop


async def probe(scratch: Path) -> KernelFeatures:
    """Mount a tiny image in a directory below ``scratch``, every way there is. Leaves nothing behind.

    A failure of any kind is an answer, not an error. Mounting loads the kernel's modules where needed.
    """
    problem = fuse_problem = ""
    file_backed = directio = loop = False
    init = None
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        directory = Path(tempfile.mkdtemp(prefix="probe-", dir=scratch))
    except OSError as exc:
        problem = fuse_problem = f"{scratch}: {exc.strerror}"
    else:
        try:
            try:
                init = await asyncio.to_thread(_fuse_init, directory)
            except (SessionError, MountError) as exc:
                fuse_problem = str(exc)
            directio, _ = await _try(directory, mounting.mount_erofs_file, "directio")
            file_backed, problem = (True, "") if directio else await _try(directory, mounting.mount_erofs_file)
            if not file_backed:
                loop, loop_problem = await _try(directory, mounting.mount_erofs_loop)
                problem = "" if loop else f"from files: {problem}; from loop devices: {loop_problem}"
        finally:
            await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)
    return KernelFeatures(
        release=os.uname().release,
        fuse_minor=init.minor if init else 0,
        fuse_resend=bool(init and init.flags & InitFlag.HAS_RESEND),
        fuse_problem=fuse_problem,
        erofs_file_backed=file_backed,
        erofs_directio=directio,
        erofs_loop=loop,
        erofs_problem=problem,
    )


def _fuse_init(directory: Path) -> Init:
    target = directory / "fuse"
    target.mkdir()
    fd = mount_fuse(target)
    try:
        return read_init(fd)
    finally:
        unmount(target, UnmountFlag.FORCE | UnmountFlag.DETACH)
        os.close(fd)


_Mount = Callable[[Path, Path, Path, str], Awaitable[None]]


async def _try(directory: Path, mount: _Mount, options: str = "") -> tuple[bool, str]:
    bootstrap, device, target = directory / "bootstrap", directory / "device", directory / "mount"
    try:
        bootstrap.write_bytes(tiny_bootstrap())
        device.write_bytes(bytes(_BLOCK * _DEVICE_BLOCKS))
        target.mkdir(exist_ok=True)
        await mount(bootstrap, device, target, options)
    except MountError as exc:
        return False, "the kernel has no EROFS" if exc.code == errno.ENODEV else str(exc)
    except OSError as exc:
        return False, f"{directory}: {exc.strerror}"
    try:
        await mounting.unmount(target, UnmountFlag.DETACH)
    except MountError as exc:
        return False, str(exc)
    return True, ""


def tiny_bootstrap() -> bytes:
    """The smallest image with an extra device: one block, an empty root directory. Pure.

    Layout (``fs/erofs/erofs_fs.h``): the superblock of 128 bytes at 1024, the root's compact inode of 32 bytes
    and its two entries right behind it (flat, inline), the slot of 128 bytes for the device.
    """
    inode_at, slot_at = 1152, 1280
    entries = struct.pack("<QHBx QHBx", 36, 24, 2, 36, 25, 2) + b"..."  # "." and "..", names at 24 and 25
    inode = struct.pack(
        "<HHHHIIIIHHI",
        2 << 1,  # compact inode, flat inline
        0,
        0o040555,
        2,  # nlink
        len(entries),
        0,
        0,
        1,  # ino
        0,
        0,
        0,
    )
    superblock = struct.pack(
        "<IIIBBHQQIIII16s16sIHHH",
        0xE0F5E1E2,
        0,  # checksum: none, as feature_compat says
        0,
        12,  # block size 4096
        0,
        inode_at // 32,  # root nid
        1,  # inodes
        0,
        0,
        1,  # blocks
        0,
        0,
        bytes(16),
        b"fastpull-probe",
        0x8,  # feature_incompat: device table
        0,
        1,  # extra devices
        slot_at // 128,
    )
    image = bytearray(_BLOCK)
    image[1024 : 1024 + len(superblock)] = superblock
    image[inode_at : inode_at + len(inode) + len(entries)] = inode + entries
    image[slot_at + 64 : slot_at + 72] = struct.pack("<II", _DEVICE_BLOCKS, 1)  # blocks, mapped_blkaddr
    return bytes(image)
