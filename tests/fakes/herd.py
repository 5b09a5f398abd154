"""Many HTTP clients in one thread that compare what they get, and need no memory for it."""

from __future__ import annotations

import selectors
import socket
from collections.abc import Callable
from dataclasses import dataclass

_BUFFER_BYTES = 2**20


@dataclass
class Reader:
    """One client. ``position`` bytes of the body came, all as expected; ``error`` says why no more."""

    socket: socket.socket
    position: int = 0
    head: bytes = b""
    length: int = -1
    error: str = ""


def read_all(
    port: int, path: str, expected: bytes, clients: int, *, while_reading: Callable[[], None] = lambda: None
) -> list[Reader]:
    """Let so many clients GET ``path`` at once; return them when all have ended. Raises nothing about bodies."""
    request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode()
    readers = [Reader(socket.create_connection(("127.0.0.1", port))) for _ in range(clients)]
    with selectors.DefaultSelector() as selector:
        for reader in readers:
            reader.socket.sendall(request)
            reader.socket.setblocking(False)
            selector.register(reader.socket, selectors.EVENT_READ, reader)
        buffer = memoryview(bytearray(_BUFFER_BYTES))
        while selector.get_map():
            while_reading()
            for key, _ in selector.select(1.0):
                if not _step(key.data, buffer, expected):
                    selector.unregister(key.data.socket)
                    key.data.socket.close()
    return readers


def _step(reader: Reader, buffer: memoryview, expected: bytes) -> bool:
    """Read once; return whether there is more to come."""
    try:
        count = reader.socket.recv_into(buffer)
    except BlockingIOError:
        return True
    except OSError as exc:
        reader.error = str(exc)
        return False
    data = buffer[:count]
    if not count:
        reader.error = "" if reader.position == reader.length else f"ended at {reader.position} of {reader.length}"
        return False
    if reader.length < 0:
        reader.head += bytes(data)
        head, found, rest = reader.head.partition(b"\r\n\r\n")
        if not found:
            return True
        lines = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        reader.length = int(lines[b"content-length"])
        if not head.startswith(b"HTTP/1.1 200"):
            reader.error = head.decode()
            return False
        data = memoryview(rest)
    if not expected.startswith(data, reader.position):  # a memcmp; memoryviews compare item by item
        reader.error = f"wrong bytes behind {reader.position}"
        return False
    reader.position += len(data)
    return True
