"""Starts and finds the processes of the portable driver, also those of an earlier daemon. They end by themselves.

What is known of a child is on the disk and in the kernel: a lock file ``RUN_DIR/portable/TOKEN``, which it holds
as long as it lives, and its mount, whose source is ``TOKEN``. So a daemon that was killed forgets nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import re
import secrets
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from fastpull.fuse_client.portable.errors import INSTALL, ChildError, PortableUnavailableError

log = logging.getLogger(__name__)

SUBTYPE = "fastpull-tree"
"""Of the file systems that children mount, ``fuse.fastpull-tree`` in ``/proc/self/mountinfo``."""

_DIRECTORY = "portable"
_TOKEN = re.compile(r"fastpull-[0-9a-f]{16}")
_START_SECONDS = 60.0
_LOOK_SECONDS = 0.02
_MODULE = "fastpull.fuse_client.portable.child"


class Children:
    """The children of one run directory."""

    def __init__(self, run_dir: Path) -> None:
        self._directory = run_dir / _DIRECTORY

    async def start(self, arguments: Sequence[str]) -> str:
        """Start a child with the arguments of its chain and return its token: its tree is mounted then.

        Raise ``ChildError``, or ``PortableUnavailableError`` without pyfuse3; nothing runs and is mounted then but
        what its process did in its last moment.
        """
        self._directory.mkdir(mode=0o700, exist_ok=True)
        token = f"fastpull-{secrets.token_hex(8)}"
        command = [sys.executable, "-P", "-m", _MODULE, "--token", token, "--lock", str(self._lock(token))]
        process = await asyncio.create_subprocess_exec(
            *command,
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(_START_SECONDS):
                out, _ = await process.communicate()
        except BaseException as exc:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await asyncio.shield(self._kill(token))
            if isinstance(exc, TimeoutError):
                raise ChildError(f"the process of a mount did not start within {_START_SECONDS:.0f} s") from exc
            raise
        if process.returncode:
            self.forget(token)
            reason, _, remedy = out.decode(errors="replace").strip().partition("\n")
            if remedy == INSTALL:
                raise PortableUnavailableError(reason.rpartition("pyfuse3: ")[2])
            raise ChildError(reason or "the process of a mount ended before it began; its log says why", remedy=remedy)
        return token

    def is_alive(self, token: str) -> bool:
        """Whether the child of this token runs."""
        if not _TOKEN.fullmatch(token):
            return False
        try:
            fd = os.open(self._lock(token), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    async def ended(self, token: str, seconds: float) -> bool:
        """Wait until the child has ended, as it does when the last user of its mount is gone."""
        deadline = asyncio.get_running_loop().time() + seconds
        while self.is_alive(token):
            if asyncio.get_running_loop().time() >= deadline:
                return False
            await asyncio.sleep(_LOOK_SECONDS)
        self.forget(token)
        return True

    def forget(self, token: str) -> None:
        """The child has ended."""
        self._lock(token).unlink(missing_ok=True)

    def living(self) -> list[str]:
        """The tokens of all children that run; what the others left is removed."""
        tokens = []
        with contextlib.suppress(FileNotFoundError):
            for path in sorted(self._directory.iterdir()):
                if self.is_alive(path.name):
                    tokens.append(path.name)
                elif _TOKEN.fullmatch(path.name):
                    path.unlink(missing_ok=True)
        return tokens

    async def _kill(self, token: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            os.kill(int(self._lock(token).read_text()), signal.SIGKILL)
        await self.ended(token, _START_SECONDS)

    def _lock(self, token: str) -> Path:
        return self._directory / token
