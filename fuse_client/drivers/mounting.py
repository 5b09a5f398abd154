"""The daemon's side of ``mount_process.py``."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from pathlib import Path

from fastpull.fuse_client.drivers.errors import MountError, MountTimeoutError
from fastpull.fuse_client.drivers.mounts import UnmountFlag

_TIMEOUT_SECONDS = 60.0


async def mount_erofs_file(bootstrap: Path, device: Path, target: Path, options: str = "") -> None:
    """EROFS straight from files (Linux 6.12). Raise ``MountError``."""
    await _run("mount erofs on", target, "erofs-file", _plain(bootstrap), _plain(device), str(target), options)


async def mount_erofs_loop(bootstrap: Path, device: Path, target: Path, options: str = "") -> None:
    """EROFS from loop devices over the files; they go with the mount. Raise ``MountError``."""
    await _run("mount erofs on", target, "erofs-loop", _plain(bootstrap), _plain(device), str(target), options)


async def unmount(target: Path, flags: UnmountFlag = UnmountFlag.NO_FOLLOW) -> None:
    """Raise ``MountError``."""
    await _run("unmount", target, "unmount", str(target), str(int(flags)))


def _plain(path: Path) -> str:
    """A comma would end the mount option."""
    text = str(path)
    if "," in text:
        raise MountError(
            "use", path, 0, "a path with a comma can not be a mount option", remedy="choose another run_dir"
        )
    return text


async def _run(what: str, target: Path, *arguments: str) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-m",
        "fastpull.fuse_client.drivers.mount_process",
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for the daemon, which then decides
    )
    try:
        async with asyncio.timeout(_TIMEOUT_SECONDS):
            out, err = await process.communicate()
    except BaseException as exc:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        if isinstance(exc, TimeoutError):
            raise MountTimeoutError(what, target, _TIMEOUT_SECONDS) from exc
        raise
    if process.returncode == 0:
        return
    code, _, reason = out.decode(errors="replace").partition(" ")
    if process.returncode == 1 and code.isdecimal():
        raise _as_raised(what, target, int(code), reason)
    raise MountError(
        what, target, 0, err.decode(errors="replace").strip()[-500:] or f"exit status {process.returncode}"
    )


def _as_raised(what: str, target: Path, code: int, message: str) -> MountError:
    """The child's own error, which may be about a loop device rather than the target."""
    reason = message.removeprefix(f"{what} {target}: ")
    return MountError(what, target, code, reason)
