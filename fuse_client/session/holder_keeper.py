"""Our side of the holder: a keeper of descriptors (``keeper.FdKeeper``)."""

from __future__ import annotations

import asyncio
import os
import select
import socket
import subprocess
import sys
import time
from pathlib import Path

from fastpull.fuse_client.session import holder
from fastpull.fuse_client.session.errors import KeeperError, KeeperGoneError

_ANSWER_SECONDS = 10.0
_START_SECONDS = 30.0


class HolderKeeper:
    """Our holder process (``holder.py``), over one connection that lasts as long as we do."""

    def __init__(self, connection: socket.socket, pid: int, version: int) -> None:
        self._connection = connection
        self.pid = pid
        self.version = version

    @property
    def description(self) -> str:
        return f"holder (pid {self.pid})"

    @classmethod
    def connect(cls, run_dir: Path) -> HolderKeeper | None:
        """The holder of ``run_dir``; None = none runs."""
        path = run_dir / holder.SOCKET_NAME
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            _connect(connection, path)
            keeper = cls(connection, 0, 0)
            words, _ = keeper._ask("hello")
            keeper.version, keeper.pid = int(words[0]), int(words[1])
        except (FileNotFoundError, ConnectionRefusedError, KeeperGoneError):
            connection.close()
            return None
        except OSError as exc:
            connection.close()
            raise KeeperError(f"the holder at {path} can not be reached: {exc.strerror or exc}") from exc
        except (KeeperError, ValueError, IndexError) as exc:
            connection.close()
            raise KeeperError(f"what listens at {path} is no holder: {exc}") from exc
        return keeper

    @classmethod
    def connect_or_start(cls, run_dir: Path) -> HolderKeeper:
        """The holder of ``run_dir``, started if none runs. Call it with the session's lock held."""
        keeper = cls.connect(run_dir)
        if keeper is None:
            _start(run_dir)
            keeper = cls.connect(run_dir)
        if keeper is None:
            raise KeeperGoneError(f"the holder of {run_dir} ended as soon as it had started")
        return keeper

    def take(self, name: str) -> int | None:
        _, fds = self._ask(f"take {name}")
        return fds[0] if fds else None

    def put(self, name: str, fd: int) -> None:
        self._ask(f"put {name}", fd)

    def drop(self, name: str) -> None:
        self._ask(f"drop {name}")

    def stop(self) -> None:
        """End the holder; what it kept is closed."""
        self._ask("stop")

    async def lost(self) -> None:
        loop = asyncio.get_running_loop()
        gone = loop.create_future()
        poll = select.poll()
        poll.register(self._connection, 0)  # no input: answers are read by _ask; POLLHUP is always reported

        def look() -> None:
            if poll.poll(0) and not gone.done():
                gone.set_result(None)

        loop.add_reader(self._connection, look)
        try:
            await gone
        finally:
            loop.remove_reader(self._connection)

    def close(self) -> None:
        self._connection.close()

    def _ask(self, text: str, *fds: int) -> tuple[list[str], list[int]]:
        try:
            socket.send_fds(self._connection, [text.encode()], list(fds))
            packet, received, _flags, _address = socket.recv_fds(self._connection, holder.MAX_PACKET, 1)
        except TimeoutError as exc:
            raise KeeperError(f"{self.description} does not answer") from exc
        except OSError as exc:
            raise KeeperGoneError(f"{self.description} is gone: {exc.strerror or exc}") from exc
        for fd in received:
            os.set_inheritable(fd, False)
        if not packet:
            raise KeeperGoneError(f"{self.description} is gone")
        verdict, *words = packet.decode("ascii", "replace").split(" ")
        if verdict not in ("ok", "none"):
            for fd in received:
                os.close(fd)
            raise KeeperError(f"{self.description} refused {text!r}: {' '.join(words)}")
        return words, list(received)


def _connect(connection: socket.socket, path: Path) -> None:
    """Raise ``OSError``."""
    connection.settimeout(_ANSWER_SECONDS)
    deadline = time.monotonic() + _ANSWER_SECONDS
    while True:
        try:
            connection.connect(str(path))
        except BlockingIOError:  # its queue of connections is full
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.02)
        else:
            return


def _start(run_dir: Path) -> None:
    """Returns when the holder listens: its first process exits then."""
    # Isolated and without site-packages: half the memory, and nothing that an upgrade could pull away.
    command = [sys.executable, "-I", "-S", holder.__file__, str(run_dir)]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_START_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise KeeperError(f"the holder can not be started: {exc}") from exc
    if done.returncode:
        raise KeeperError(f"the holder can not be started: {done.stderr.decode(errors='replace').strip()[-500:]}")
