"""systemd as a keeper of descriptors (``keeper.FdKeeper``)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Mapping

from fastpull.fuse_client.session.errors import KeeperError

_LISTEN_FDS_START = 3  # sd_listen_fds(3)


class SystemdKeeper:
    """systemd's descriptor store (sd_pid_notify_with_fds(3)): no process of ours, same promise.

    The unit needs ``FileDescriptorStoreMax=``; since systemd 254 also ``FileDescriptorStorePreserve=yes`` for
    the descriptors to survive ``systemctl stop``.
    """

    def __init__(self, notify_socket: str, received: Mapping[str, int]) -> None:
        self._notify_socket = notify_socket
        self._received = dict(received)

    @property
    def description(self) -> str:
        return "systemd's descriptor store"

    @classmethod
    def from_environment(cls, environ: Mapping[str, str], *, pid: int) -> SystemdKeeper | None:
        """None = this process was not started by systemd with room in the descriptor store."""
        notify_socket = environ.get("NOTIFY_SOCKET", "")
        names: list[str] = []
        if environ.get("LISTEN_PID") == str(pid):
            names = [name for name in environ.get("LISTEN_FDNAMES", "").split(":") if name]
        # $FDSTORE came with systemd 254; before, only a descriptor that came back shows that there is a store.
        if not notify_socket or not (names or environ.get("FDSTORE", "0") != "0"):
            return None
        return cls(notify_socket, {name: _LISTEN_FDS_START + i for i, name in enumerate(names)})

    def take(self, name: str) -> int | None:
        fd = self._received.get(name)
        if fd is None:
            return None
        try:
            return os.dup(fd)
        except OSError as exc:
            raise KeeperError(f"descriptor {fd} ({name}) from systemd: {exc.strerror}") from exc

    def put(self, name: str, fd: int) -> None:
        self.drop(name)
        # FDPOLL=0: systemd would be woken for every FUSE request.
        self._notify(f"FDSTORE=1\nFDNAME={name}\nFDPOLL=0", fd)

    def drop(self, name: str) -> None:
        if (fd := self._received.pop(name, None)) is not None:
            with contextlib.suppress(OSError):
                os.close(fd)
        self._notify(f"FDSTOREREMOVE=1\nFDNAME={name}")

    async def lost(self) -> None:
        await asyncio.Event().wait()

    def close(self) -> None:
        """Nothing to leave."""

    def _notify(self, text: str, *fds: int) -> None:
        address = self._notify_socket
        if address.startswith("@"):
            address = "\0" + address[1:]
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.connect(address)
                socket.send_fds(sock, [text.encode()], list(fds))
        except OSError as exc:
            raise KeeperError(f"systemd at {self._notify_socket} can not be told: {exc.strerror or exc}") from exc
