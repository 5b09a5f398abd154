"""A registry of one blob behind a link of so many bytes a second, shared by all connections.

    paced_upstream.py PORT FILE BYTES_PER_SECOND

Answers ``GET /v2/<name>/blobs/<digest>`` with ranges, whatever name and digest; prints a line when it listens.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
import time

import uvloop

_PIECE = 32 * 1024
_BURST_SECONDS = 0.002


class Link:
    """A token bucket: bytes leave one behind the other, whoever sends them."""

    def __init__(self, bytes_per_second: float) -> None:
        self._rate = bytes_per_second
        self._free_at = 0.0

    async def carry(self, count: int) -> None:
        now = time.perf_counter()
        self._free_at = max(self._free_at, now) + count / self._rate
        if self._free_at - now > _BURST_SECONDS:
            await asyncio.sleep(self._free_at - now)


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, fd: int, size: int, link: Link) -> None:
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            wanted = re.search(rb"range: bytes=(\d+)-(\d*)", head, re.IGNORECASE)
            start = int(wanted[1]) if wanted else 0
            stop = min(size, int(wanted[2]) + 1) if wanted and wanted[2] else size
            status = b"206 Partial Content" if wanted else b"200 OK"
            place = b"Content-Range: bytes %d-%d/%d\r\n" % (start, stop - 1, size) if wanted else b""
            writer.write(b"HTTP/1.1 %b\r\n%bContent-Length: %d\r\n\r\n" % (status, place, stop - start))
            while start < stop:
                data = os.pread(fd, min(_PIECE, stop - start), start)
                await link.carry(len(data))
                writer.write(data)
                await writer.drain()
                start += len(data)
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def main() -> None:
    port, path, rate = int(sys.argv[1]), sys.argv[2], float(sys.argv[3])
    fd = os.open(path, os.O_RDONLY)
    size = os.fstat(fd).st_size
    link = Link(rate)
    server = await asyncio.start_server(lambda r, w: answer(r, w, fd, size, link), "127.0.0.1", port)
    print("listening", flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
