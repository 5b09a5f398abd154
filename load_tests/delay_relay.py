"""Forward TCP connections with a delay, where the kernel has no netem:

    python delay_relay.py LISTEN_ADDRESS DELAY_SECONDS PORT…    to 127.0.0.1:PORT, from then on until it is killed

Each direction is late by the delay. What is on its way is bounded, and so is the memory. The handshake of TCP
itself is not delayed: clients that keep their connections do not see the difference.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from functools import partial

PIECE = 256 * 1024
PIECES = 64  # on the way: 16 MiB, more than the product of bandwidth and delay of 10 Gbit/s and 10 ms


async def _forward(delay: float, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    loop = asyncio.get_running_loop()
    late: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(PIECES)

    async def send() -> None:
        while True:
            due, data = await late.get()
            if (rest := due - loop.time()) > 0:
                await asyncio.sleep(rest)
            if not data:
                if writer.can_write_eof():
                    writer.write_eof()
                return
            writer.write(data)
            await writer.drain()

    async with asyncio.TaskGroup() as both:
        both.create_task(send())
        while True:
            data = await reader.read(PIECE)
            await late.put((loop.time() + delay, data))
            if not data:
                break


async def _serve(port: int, delay: float, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    ends = [writer]
    try:
        there, back = await asyncio.open_connection("127.0.0.1", port)
        ends.append(back)
        async with asyncio.TaskGroup() as ways:
            ways.create_task(_forward(delay, reader, back))
            ways.create_task(_forward(delay, there, writer))
    except* OSError:
        pass  # a connection that breaks on one side ends on the other
    finally:
        for end in ends:
            end.close()
            with contextlib.suppress(OSError):
                await end.wait_closed()


async def main(address: str, delay: float, ports: list[int]) -> None:
    servers = [await asyncio.start_server(partial(_serve, port, delay), address, port) for port in ports]
    async with contextlib.AsyncExitStack() as stack:
        for server in servers:
            await stack.enter_async_context(server)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[2]), [int(port) for port in sys.argv[3:]]))
