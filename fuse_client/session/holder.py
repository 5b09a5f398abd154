"""The holder: a process that keeps the descriptor of the FUSE mount while daemons come and go.

It knows nothing of FUSE: it stores descriptors by name and hands out copies. A daemon mounts, leaves the
descriptor here, and may then be killed at any time; readers wait in the kernel until the next daemon has
taken the descriptor. Small on purpose: the standard library only, no threads, nothing that grows.

    python -P -m fastpull.fuse_client.session.holder RUN_DIR

listens on ``RUN_DIR/holder.sock`` (mode 0600), goes to the background once it does, and lives until ``stop``.

The protocol, version 1: a connection of AF_UNIX SOCK_SEQPACKET, one request and one answer per packet, ASCII.

    request      descriptor   answer
    hello                     ok VERSION PID NAME ...
    put NAME     1            ok                          keeps it, replacing what had the name
    take NAME                 ok, with 1 descriptor       or: none
    drop NAME                 ok                          closes it
    stop                      ok                          closes all and exits

and ``error REASON`` for anything else. A name is up to 64 characters of a-z, 0-9, "-" and ".". Only the user
that the holder runs as, and root, are served. A descriptor whose other side is gone (an unmounted FUSE) is
dropped when somebody asks for it. It is not watched: whoever polls ``/dev/fuse`` is woken for every request.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import sys
from collections.abc import Sequence

VERSION = 1
SOCKET_NAME = "holder.sock"
MAX_PACKET = 4096
MAX_NAME = 64

_MAX_CLIENTS = 32
_MAX_KEPT = 64
_NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-.")
_UCRED = struct.Struct("iII")  # pid, uid, gid

Answer = tuple[bytes, tuple[int, ...]]


def main(argv: Sequence[str]) -> int:
    if len(argv) != 2:
        sys.stderr.write("usage: holder RUN_DIR\n")
        return 2
    path = os.path.join(argv[1], SOCKET_NAME)  # noqa: PTH118 - pathlib would double the memory used
    try:
        listener = _listen(path)
    except OSError as exc:
        sys.stderr.write(f"{path}: {exc.strerror}\n")
        return 1
    if os.fork():
        os._exit(0)  # whoever waits for this process knows now that the holder listens
    _detach()
    Holder(listener).run()
    return 0


def _listen(path: str) -> socket.socket:
    """Raise ``OSError`` (EADDRINUSE) when a holder listens there already."""
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        probe.connect(path)
    except OSError as exc:
        if exc.errno == errno.ECONNREFUSED:
            os.unlink(path)  # noqa: PTH108 - left by a holder that was killed
        elif exc.errno != errno.ENOENT:
            raise
    else:
        raise OSError(errno.EADDRINUSE, "a holder listens there already")
    finally:
        probe.close()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    old = os.umask(0o177)
    try:
        listener.bind(path)
    finally:
        os.umask(old)
    listener.listen(128)
    return listener


def _detach() -> None:
    os.setsid()
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)
    try:
        with open("/proc/self/oom_score_adj", "w") as file:  # noqa: PTH123 - see above
            file.write("-999")
    except OSError:
        pass  # not root: it is then as likely to be killed as anything else


class Holder:
    """Serves until told to stop. Nothing a client does ends it or keeps others waiting."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._clients: dict[int, socket.socket] = {}
        self._kept: dict[str, int] = {}

    def run(self) -> None:
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        while self._listener.fileno() >= 0:  # until told to stop
            for fd, _ in poll.poll():
                if fd not in self._clients:
                    self._accept(poll)
                elif not self._serve(self._clients[fd]):
                    poll.unregister(fd)
                    self._clients.pop(fd).close()
                if self._listener.fileno() < 0:
                    break

    def _accept(self, poll: select.poll) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:
            return  # gone again, or out of descriptors: the next one will be served
        client.setblocking(False)
        _, uid, _ = _UCRED.unpack(client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        if uid not in (0, os.geteuid()) or len(self._clients) >= _MAX_CLIENTS:
            client.close()
            return
        self._clients[client.fileno()] = client
        poll.register(client, select.POLLIN)

    def _serve(self, client: socket.socket) -> bool:
        """Answer one packet. False = the client is gone or does not take its answer."""
        fds: list[int] = []
        try:
            packet, fds, _flags, _address = socket.recv_fds(client, MAX_PACKET, 4)
            if not packet:
                return False
            text, out = self._answer(packet, fds)
            socket.send_fds(client, [text], out)
        except BlockingIOError:
            return not fds
        except OSError:
            return False
        finally:
            for fd in fds:
                if fd not in self._kept.values():
                    os.close(fd)
        return True

    def _answer(self, packet: bytes, fds: Sequence[int]) -> Answer:
        verb, _, name = packet.decode("ascii", "replace").partition(" ")
        if verb == "hello" and not name:
            names = [name for name in list(self._kept) if self._alive(name)]
            return " ".join(["ok", str(VERSION), str(os.getpid()), *names]).encode(), ()
        if verb == "stop" and not name:
            # Before the answer: who has it must not find this holder any more.
            os.unlink(self._listener.getsockname())  # noqa: PTH108
            self._listener.close()
            return b"ok", ()
        if not 0 < len(name) <= MAX_NAME or not _NAME_CHARACTERS.issuperset(name):
            return b"error no such request", ()
        if verb == "put":
            return self._put(name, fds)
        if verb == "take":
            return (b"ok", (self._kept[name],)) if self._alive(name) else (b"none", ())
        if verb == "drop":
            self._drop(name)
            return b"ok", ()
        return b"error no such request", ()

    def _put(self, name: str, fds: Sequence[int]) -> Answer:
        if len(fds) != 1:
            return b"error put takes one descriptor", ()
        if name not in self._kept and len(self._kept) >= _MAX_KEPT:
            return b"error too many descriptors", ()
        self._drop(name)
        self._kept[name] = fds[0]
        return b"ok", ()

    def _drop(self, name: str) -> None:
        fd = self._kept.pop(name, None)
        if fd is not None:
            os.close(fd)

    def _alive(self, name: str) -> bool:
        """Whether the descriptor is here and its other side too."""
        fd = self._kept.get(name)
        if fd is None:
            return False
        poll = select.poll()
        poll.register(fd, 0)
        if poll.poll(0):  # POLLERR or POLLHUP, which are always reported
            self._drop(name)
            return False
        return True


if __name__ == "__main__":
    sys.exit(main(sys.argv))
