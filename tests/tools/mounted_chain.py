"""Lay a built chain out as files and mount it with the kernel's EROFS (root needed)."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from fastpull.cache.digest import ChunkId
from fastpull.image.chain import BuiltChain
from fastpull.image.chunk_map import ChunkMap

_MS_RDONLY = 1
_MNT_DETACH = 2
_libc = ctypes.CDLL(None, use_errno=True)


def lay_out(built: BuiltChain, chunks: Mapping[ChunkId, bytes], folder: Path) -> tuple[Path, Path]:
    """Write bootstrap and device (a sparse file) into ``folder``."""
    bootstrap, device = folder / "bootstrap", folder / "device"
    bootstrap.write_bytes(built.bootstrap)
    with device.open("wb") as file, ChunkMap.open(built.chunk_map) as chunk_map:
        file.truncate(built.device_bytes)
        for piece in chunk_map.pieces(0, built.device_bytes):
            file.seek(piece.device_offset)
            file.write(chunks[piece.chunk_id])
    return bootstrap, device


def fsck(bootstrap: Path, device: Path) -> None:
    """Raise with fsck's words if it does not like the bootstrap."""
    done = subprocess.run(
        ["fsck.erofs", f"--device={device}", bootstrap], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@contextlib.contextmanager
def mounted(bootstrap: Path, device: Path, at: Path, *, with_loop: bool = False) -> Iterator[Path]:
    """Mount read-only at ``at``: file-backed, or through loop devices as kernels before 6.12 need it."""
    at.mkdir(exist_ok=True)
    with contextlib.ExitStack() as stack:
        if with_loop:
            source, extra = stack.enter_context(_loop(bootstrap)), stack.enter_context(_loop(device))
            options = f"device={extra}"
        else:
            source, options = str(bootstrap), f"device={device},directio"
        if _libc.mount(source.encode(), os.fsencode(at), b"erofs", _MS_RDONLY, options.encode()):
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error), source)
        stack.callback(_unmount, at)
        yield at


def _unmount(at: Path) -> None:
    if _libc.umount2(os.fsencode(at), 0):
        _libc.umount2(os.fsencode(at), _MNT_DETACH)
        raise AssertionError(f"{at} was still in use")


@contextlib.contextmanager
def _loop(path: Path) -> Iterator[str]:
    command = ["losetup", "--find", "--show", "--read-only", str(path)]
    name = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()
    try:
        yield name
    finally:
        subprocess.run(["losetup", "--detach", name], check=True, timeout=60)
