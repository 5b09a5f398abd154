"""Child and daemon over a real socket: right bytes, bounded waits, and what happens when either is gone."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import shutil
import socket
import stat
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path

import pytest
from fakes.devices import pattern

from fastpull.cache.digest import Digest
from fastpull.cache.tasks import Tasks
from fastpull.fuse_client.portable import frames, server
from fastpull.fuse_client.portable.errors import DaemonAwayError, ReadRefusedError
from fastpull.fuse_client.portable.frames import Kind
from fastpull.fuse_client.portable.link import DaemonLink
from fastpull.fuse_client.portable.server import PortableServer
from fastpull.fuse_client.session.files import Buffers, DeviceReadError

CHAIN = Digest("ab" * 32)
OTHER = Digest("cd" * 32)
DATA = pattern(512 * 4096)
PATIENCE = 60.0


class FakeDevice:
    """``DATA``; the first half is local. ``gate`` holds the reads of the rest."""

    def __init__(self) -> None:
        self.size = len(DATA)
        self.on_forget: Callable[[], None] = lambda: None
        self.gate = asyncio.Event()
        self.gate.set()
        self.broken = False
        self.asked = 0
        self.used: list[int] = []
        self.reads = 0

    def try_read(self, offset: int, length: int, reply: Callable[[Buffers], None]) -> bool:
        if offset + length > len(DATA) // 2:
            return False
        reply((memoryview(DATA)[offset : offset + length],))
        return True

    async def read(self, offset: int, length: int) -> Buffers:
        self.asked += 1
        await self.gate.wait()
        if self.broken:
            raise DeviceReadError("broken on purpose")
        return (DATA[offset : offset + 1], memoryview(DATA)[offset + 1 : offset + length])

    def used_elsewhere(self, indexes: Iterable[int], reads: int) -> None:
        self.used += indexes
        self.reads += reads


@pytest.fixture
def run_dir() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="fpl-"))  # short: unix sockets end after 107 bytes
    yield path
    shutil.rmtree(path)


@contextlib.asynccontextmanager
async def daemon(run_dir: Path, device: FakeDevice | None) -> AsyncIterator[PortableServer]:
    serving = PortableServer()
    if device is not None:
        serving.add(CHAIN.hex, device)
    async with serving.listen(run_dir):
        yield serving


@contextlib.asynccontextmanager
async def linked(run_dir: Path, *, wait_seconds: float = PATIENCE, chain: Digest = CHAIN) -> AsyncIterator[DaemonLink]:
    tasks = Tasks()
    link = DaemonLink(run_dir / server.SOCKET_NAME, chain, wait_seconds=wait_seconds)
    _ = tasks.spawn(link.run(), name="link")
    try:
        yield link
    finally:
        await tasks.aclose()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.005)


async def hung_up(reader: asyncio.StreamReader) -> None:
    """Whatever was said before, the connection ends."""
    async with asyncio.timeout(PATIENCE):
        with contextlib.suppress(ConnectionResetError):
            while await reader.read(1 << 16):
                pass


@pytest.mark.parametrize("offset", [0, len(DATA) // 2])
@pytest.mark.parametrize("length", [1, 4096, 600_000])
async def test_reads_give_the_devices_bytes(run_dir: Path, offset: int, length: int) -> None:
    """Whether the daemon has them or fetches them."""
    async with daemon(run_dir, FakeDevice()), linked(run_dir) as link:
        assert await link.read(offset, length) == DATA[offset : offset + length]


async def test_many_reads_at_once_are_each_answered(run_dir: Path) -> None:
    """More than may wait at the daemon, and the answers in another order than the questions."""
    device = FakeDevice()
    device.gate.clear()
    half = len(DATA) // 2
    async with daemon(run_dir, device), linked(run_dir) as link, asyncio.TaskGroup() as group:
        slow = [group.create_task(link.read(half + 4096 * n, 4096)) for n in range(frames.MAX_WAITING - 1)]
        await until(lambda: device.asked == frames.MAX_WAITING - 1)
        assert await link.read(0, 4096) == DATA[:4096]
        more = [group.create_task(link.read(half + 4096 * n, 100)) for n in range(50)]
        await asyncio.sleep(0)
        device.gate.set()
        for n, read in enumerate(slow):
            assert await read == DATA[half + 4096 * n :][:4096]
        for n, read in enumerate(more):
            assert await read == DATA[half + 4096 * n :][:100]


async def test_a_failed_fetch_is_an_error_of_that_read(run_dir: Path) -> None:
    """The next one is answered."""
    device = FakeDevice()
    device.broken = True
    async with daemon(run_dir, device), linked(run_dir) as link:
        with pytest.raises(ReadRefusedError) as caught:
            await link.read(len(DATA) // 2, 10)
        assert caught.value.code == errno.EIO
        device.broken = False
        assert await link.read(len(DATA) // 2, 10) == DATA[len(DATA) // 2 :][:10]


async def test_a_read_waits_for_the_daemon_to_come(run_dir: Path) -> None:
    async with linked(run_dir) as link:
        read = asyncio.get_running_loop().create_task(link.read(0, 100))
        await asyncio.sleep(0.01)
        assert not read.done()
        async with daemon(run_dir, FakeDevice()):
            assert await read == DATA[:100]


async def test_a_daemon_that_dies_costs_a_read_only_time(run_dir: Path) -> None:
    """The read is asked again of the next one."""
    first, second = FakeDevice(), FakeDevice()
    first.gate.clear()
    half = len(DATA) // 2
    async with linked(run_dir) as link:
        async with daemon(run_dir, first):
            read = asyncio.get_running_loop().create_task(link.read(half, 100))
            await until(lambda: first.asked)
        await until(lambda: not link.is_up)
        assert not read.done()
        async with daemon(run_dir, second):
            assert await read == DATA[half : half + 100]
    assert second.asked == 1


@pytest.mark.parametrize("there", [None, "silent", "unknown"])
async def test_no_read_waits_longer_than_it_may(run_dir: Path, there: str | None) -> None:
    """Whether nobody listens, nobody answers, or the daemon does not know the chain."""
    device = FakeDevice()
    device.gate.clear()
    async with contextlib.AsyncExitStack() as stack:
        if there is not None:
            await stack.enter_async_context(daemon(run_dir, device))
        chain = OTHER if there == "unknown" else CHAIN
        link = await stack.enter_async_context(linked(run_dir, wait_seconds=0.2, chain=chain))
        async with asyncio.timeout(PATIENCE):
            with pytest.raises(DaemonAwayError):
                await link.read(len(DATA) // 2, 100)


async def test_uses_reach_the_device_and_a_new_trace_the_child(run_dir: Path) -> None:
    device = FakeDevice()
    again: list[bool] = []
    async with daemon(run_dir, device) as serving, linked(run_dir) as link:
        link.on_again = lambda: again.append(True)
        await until(lambda: link.is_up and serving.children)
        assert link.report([7, 3], 5)
        await until(lambda: device.reads)
        assert (device.used, device.reads) == ([7, 3], 5)
        device.on_forget()
        await until(lambda: again)
    assert not link.report([1], 1), "nobody is there to hear it"


async def test_a_chain_that_is_removed_loses_its_children(run_dir: Path) -> None:
    hangups: list[bool] = []
    async with daemon(run_dir, FakeDevice()) as serving, linked(run_dir) as link:
        serving.on_hangup = lambda: hangups.append(True)
        await until(lambda: serving.children)
        serving.remove(CHAIN.hex)
        await until(lambda: hangups and not link.is_up and not serving.children)


async def test_the_socket_is_for_root_alone(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its mode, and by who connects."""
    async with daemon(run_dir, FakeDevice()) as serving:
        path = run_dir / server.SOCKET_NAME
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        monkeypatch.setattr(server, "_is_ours", lambda _writer: False)
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(frames.pack_hello(CHAIN))
        await hung_up(reader)
        writer.close()
        assert not serving.children
    assert not path.exists()


def test_who_connects_is_asked_of_the_kernel() -> None:
    left, right = socket.socketpair(socket.AF_UNIX)
    with left, right:

        class Writer:
            def get_extra_info(self, _name: str) -> socket.socket:
                return left

        assert server._is_ours(Writer())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\nAccept: */*\r\n\r\n", id="http"),
        pytest.param(frames.pack_hello(CHAIN) + b"\xff" * frames.HEAD_BYTES, id="no-frame"),
        pytest.param(frames.pack_hello(CHAIN) + frames.pack_head(Kind.READ, 4096, 1, len(DATA)), id="behind-the-end"),
        pytest.param(frames.pack_hello(CHAIN) + frames.pack_head(Kind.READ, 1, 1, 2**64 - 1), id="far-behind-the-end"),
        pytest.param(frames.pack_hello(CHAIN) + frames.pack_head(Kind.DATA, 4096, 1), id="an-answer"),
    ],
)
async def test_a_child_that_says_what_none_says_is_hung_up_on(run_dir: Path, said: bytes) -> None:
    """The others go on."""
    async with daemon(run_dir, FakeDevice()), linked(run_dir) as link:
        assert await link.read(0, 10) == DATA[:10]
        reader, writer = await asyncio.open_unix_connection(run_dir / server.SOCKET_NAME)
        writer.write(said)
        await hung_up(reader)
        writer.close()
        assert await link.read(0, 10) == DATA[:10]


async def test_a_daemon_that_answers_nonsense_is_left(run_dir: Path) -> None:
    """And asked again on a new connection, until it answers as it should."""
    answers = [b"\xff" * 100, frames.pack_answer(len(DATA)) + frames.pack_head(Kind.DATA, 5, 1) + b"short"]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(frames.HELLO_BYTES)
        if answers:
            writer.write(answers.pop(0))
        else:
            writer.write(frames.pack_answer(len(DATA)))
            head = frames.unpack_head(await reader.readexactly(frames.HEAD_BYTES), from_child=True)
            writer.write(frames.pack_head(Kind.DATA, head.number, head.id) + DATA[: head.number])
        await writer.drain()
        await reader.read()
        writer.close()

    async with (
        await asyncio.start_unix_server(serve, run_dir / server.SOCKET_NAME),
        linked(run_dir) as link,
        asyncio.timeout(PATIENCE),
    ):
        assert await link.read(0, 100) == DATA[:100]
