"""A client that costs next to nothing: bodies are discarded in the kernel (recv with MSG_TRUNC, tcp(7))."""

from __future__ import annotations

import random
import selectors
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass

_BUFFER = bytearray(4 * 2**20)
_TRUNC = socket.MSG_TRUNC


@dataclass
class Load:
    """What a run came to."""

    seconds: float
    answers: int
    body_bytes: int

    @property
    def per_second(self) -> float:
        return self.answers / self.seconds

    @property
    def gb_per_second(self) -> float:
        return self.body_bytes / self.seconds / 1e9


class _Connection:
    def __init__(self, address: tuple[str, int], requests: Iterator[bytes]) -> None:
        self.socket = socket.create_connection(address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self._requests = requests
        self._head = b""
        self._left = 0
        self.answers = 0
        self.body_bytes = 0

    def ask(self) -> bool:
        request = next(self._requests, None)
        if request is None:
            return False
        self.socket.send(request)
        return True

    def read(self) -> bool:
        """Take what is there; return whether an answer ended."""
        while True:
            try:
                if not self._left:
                    data = self.socket.recv(16384)
                    if not data:
                        raise ConnectionError("the server hung up")
                    self._head += data
                    end = self._head.find(b"\r\n\r\n")
                    if end < 0:
                        continue
                    length = _length(self._head[:end])
                    got = len(self._head) - end - 4
                    self._head = b""
                    self._left = length - got
                    self.body_bytes += got
                else:
                    got = self.socket.recv_into(_BUFFER, min(self._left, len(_BUFFER)), _TRUNC)
                    if not got:
                        raise ConnectionError("the body is short")
                    self._left -= got
                    self.body_bytes += got
            except BlockingIOError:
                return False
            if not self._left:
                self.answers += 1
                return True


def _length(head: bytes) -> int:
    status = int(head[9:12])
    if status not in (200, 206):
        raise ConnectionError(head.decode(errors="replace"))
    lower = head.lower()
    at = lower.index(b"content-length:") + 15
    return int(lower[at : lower.find(b"\r\n", at) if b"\r\n" in lower[at:] else None])


def load(port: int, requests: list[bytes], *, connections: int, count: int) -> Load:
    """Send ``count`` requests, cycling through the list, over so many connections, each one at a time."""
    queue = iter(requests[i % len(requests)] for i in range(count))
    selector = selectors.DefaultSelector()
    open_ones = [_Connection(("127.0.0.1", port), queue) for _ in range(min(connections, count))]
    started = time.perf_counter()
    for connection in open_ones:
        selector.register(connection.socket, selectors.EVENT_READ, connection)
        connection.ask()
    answers = 0
    while answers < count:
        for key, _ in selector.select():
            if key.data.read():
                answers += 1
                key.data.ask()
    seconds = time.perf_counter() - started
    for connection in open_ones:
        connection.socket.close()
    return Load(seconds, answers, sum(connection.body_bytes for connection in open_ones))


def request(path: str, host: str, span: tuple[int, int] | None = None) -> bytes:
    wanted = f"Range: bytes={span[0]}-{span[1] - 1}\r\n" if span else ""
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: containerd/1.6\r\n{wanted}\r\n".encode()


def range_requests(path: str, host: str, size: int, length: int, count: int = 512) -> list[bytes]:
    places = random.Random(1)
    starts = [places.randrange(0, (size - length) // 4096) * 4096 for _ in range(count)]
    return [request(path, host, (start, start + length)) for start in starts]
