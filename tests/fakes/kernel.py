"""The kernel's end of a FUSE connection, over a socket pair: sends requests, collects answers."""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple

from fastpull.fuse_client.session.channel import Connection
from fastpull.fuse_client.session.journal import RequestJournal
from fastpull.fuse_client.session.protocol import Opcode

IN_HEADER = struct.Struct("<IIQQIIIHxx")
OUT_HEADER = struct.Struct("<IiQ")


def request(opcode: int, body: bytes = b"", *, unique: int = 2, node: int = 1, extensions: int = 0) -> bytes:
    return IN_HEADER.pack(IN_HEADER.size + len(body), opcode, unique, node, 0, 0, 1, extensions) + body


def read_body(offset: int, size: int) -> bytes:
    return struct.pack("<QQIIQII", 0, offset, size, 0, 0, 0, 0)


class Reply(NamedTuple):
    unique: int
    error: int
    body: bytes


class FakeKernel:
    """``connection`` is what a session gets instead of ``/dev/fuse``. Packets keep their boundaries, as there."""

    def __init__(self) -> None:
        self._ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self._ours, self._theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        self._ours.setblocking(False)
        self.connection = Connection(self._theirs.detach(), RequestJournal.create())
        self._unique = 0

    def send(self, opcode: int, body: bytes = b"", *, node: int = 1, unique: int = 0) -> int:
        """Send a request and return its ``unique``."""
        if not unique:
            self._unique += 2
            unique = self._unique
        self.send_raw(request(opcode, body, unique=unique, node=node))
        return unique

    def send_raw(self, data: bytes) -> None:
        self._ours.send(data)

    def read(self, node: int, offset: int, size: int) -> int:
        return self.send(Opcode.READ, read_body(offset, size), node=node)

    def replies(self) -> list[Reply]:
        """Everything answered so far and not returned before."""
        found = []
        while True:
            try:
                packet = self._ours.recv(2 << 20)
            except BlockingIOError:
                return found
            if not packet:
                return found
            length, error, unique = OUT_HEADER.unpack_from(packet)
            assert length == len(packet), "an answer that lies about its length"
            assert not error or length == OUT_HEADER.size, "an error with a body"
            found.append(Reply(unique, -error, packet[OUT_HEADER.size :]))

    def close(self) -> None:
        self._ours.close()
