"""A session, with the kernel's end of the descriptor played by the test."""

import asyncio
import errno
import logging
import os
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import pytest
from fakes.devices import MemoryDevice, RemoteDevice, pattern
from fakes.kernel import FakeKernel, Reply

from fastpull.fuse_client.session.directory import node_id
from fastpull.fuse_client.session.files import Buffers, DeviceFile
from fastpull.fuse_client.session.protocol import Opcode
from fastpull.fuse_client.session.server import FuseSession

DATA = pattern(64 * 4096)
NODE = node_id("blob")


@pytest.fixture
def kernel() -> Iterator[FakeKernel]:
    kernel = FakeKernel()
    yield kernel
    kernel.close()


@asynccontextmanager
async def serving(
    kernel: FakeKernel, device: DeviceFile | None = None, *, resumed: bool = False, grace_seconds: float = 60.0
) -> AsyncIterator[FuseSession]:
    session = FuseSession(kernel.connection, resumed=resumed, grace_seconds=grace_seconds)
    if device is not None:
        session.add("blob", device)
    session.start()
    try:
        yield session
    finally:
        await session.aclose(hand_over=False)


async def answered(kernel: FakeKernel, count: int = 1) -> list[Reply]:
    """Exactly ``count`` answers, and none more in the turns after."""
    found: list[Reply] = []
    async with asyncio.timeout(30):
        while len(found) < count:
            await asyncio.sleep(0)
            found += kernel.replies()
    for _ in range(10):
        await asyncio.sleep(0)
    assert not kernel.replies(), "more answers than requests"
    return found


class MisbehavingDevice:
    """Breaks the contract of ``DeviceFile`` in the given way."""

    size = len(DATA)

    def __init__(
        self, try_read: Callable[[Callable[[Buffers], None]], bool], read: Callable[[], Buffers] = lambda: ()
    ) -> None:
        self._try_read = try_read
        self._read = read

    def try_read(self, offset: int, length: int, reply: Callable[[Buffers], None]) -> bool:
        return self._try_read(reply)

    async def read(self, offset: int, length: int) -> Buffers:
        await asyncio.sleep(0)
        return self._read()


def fail() -> Buffers:
    raise RuntimeError("a bug, on purpose")


def cancel() -> Buffers:
    raise asyncio.CancelledError


async def test_local_bytes_are_answered_without_a_task(kernel: FakeKernel) -> None:
    """The hot path: one callback reads the request and writes the answer."""
    async with serving(kernel, MemoryDevice(DATA)) as session:
        unique = kernel.read(NODE, 4096, 8192)

        assert await answered(kernel) == [Reply(unique, 0, DATA[4096 : 4096 + 8192])]
        assert (session.stats.reads, session.stats.misses) == (1, 0)


@pytest.mark.parametrize("device", [MemoryDevice, RemoteDevice])
@pytest.mark.parametrize(
    ("offset", "size", "expected"),
    [
        pytest.param(0, 1, DATA[:1], id="one-byte"),
        pytest.param(4095, 2, DATA[4095:4097], id="across-a-block"),
        pytest.param(len(DATA) - 5, 4096, DATA[-5:], id="over-the-end"),
        pytest.param(len(DATA), 4096, b"", id="at-the-end"),
        pytest.param(2**63, 4096, b"", id="far-behind-the-end"),
        pytest.param(0, 0, b"", id="nothing"),
    ],
)
async def test_a_read_gives_the_bytes_that_are_there(
    kernel: FakeKernel, device: type[MemoryDevice | RemoteDevice], offset: int, size: int, expected: bytes
) -> None:
    """A read ends at the end of the device, whether its bytes are local or fetched."""
    async with serving(kernel, device(DATA)):
        unique = kernel.read(NODE, offset, size)

        assert await answered(kernel) == [Reply(unique, 0, expected)]


async def test_a_slow_read_keeps_nobody_waiting(kernel: FakeKernel) -> None:
    """Reads are answered as their bytes come, in any order."""
    gate = asyncio.Event()
    async with serving(kernel, RemoteDevice(DATA, gate=gate)) as session:
        session.add("local", MemoryDevice(DATA))
        slow = kernel.read(NODE, 0, 4096)
        quick = kernel.read(node_id("local"), 0, 4096)

        assert await answered(kernel) == [Reply(quick, 0, DATA[:4096])]
        assert session.waiting == 1
        gate.set()
        assert await answered(kernel) == [Reply(slow, 0, DATA[:4096])]


async def test_only_the_read_fails_whose_bytes_are_lost(kernel: FakeKernel) -> None:
    """EIO for that range; the neighbours are fine."""
    async with serving(kernel, RemoteDevice(DATA, broken=[range(8192, 12288)])) as session:
        uniques = [kernel.read(NODE, offset, 4096) for offset in (4096, 8192, 12288)]

        replies = {reply.unique: reply for reply in await answered(kernel, 3)}

        assert [replies[unique].error for unique in uniques] == [0, errno.EIO, 0]
        assert replies[uniques[2]].body == DATA[12288:16384]
        assert session.stats.failed_reads == 1


@pytest.mark.parametrize(
    "device",
    [
        pytest.param(MisbehavingDevice(lambda reply: bool(fail())), id="try-raises"),
        pytest.param(MisbehavingDevice(lambda reply: True), id="claims-to-have-answered"),
        pytest.param(MisbehavingDevice(lambda reply: reply((b"short",)) or True), id="too-few-bytes"),
        pytest.param(MisbehavingDevice(lambda reply: reply((bytes(5000),)) or True), id="too-many-bytes"),
        pytest.param(MisbehavingDevice(lambda reply: False, fail), id="read-raises"),
        pytest.param(MisbehavingDevice(lambda reply: False, cancel), id="read-is-cancelled"),
        pytest.param(MisbehavingDevice(lambda reply: False, lambda: (b"short",)), id="read-too-short"),
        pytest.param(MisbehavingDevice(lambda reply: False, lambda: None), id="read-gives-nothing"),  # type: ignore[arg-type, return-value]
    ],
)
async def test_a_broken_device_costs_one_error_and_no_hang(kernel: FakeKernel, device: DeviceFile) -> None:
    """Exactly one answer, and never wrong bytes: EROFS would take a short one for zeros."""
    async with serving(kernel, device):
        unique = kernel.read(NODE, 0, 4096)

        assert await answered(kernel) == [Reply(unique, errno.EIO, b"")]


@pytest.mark.parametrize(
    "device",
    [
        pytest.param(MisbehavingDevice(lambda reply: bool(reply((DATA[:4096],)) or fail())), id="answers-then-raises"),
        pytest.param(MisbehavingDevice(lambda reply: bool(reply((DATA[:4096],)))), id="answers-and-denies-it"),
        pytest.param(
            MisbehavingDevice(lambda reply: reply((DATA[:4096],)) or reply((DATA[:4096],)) or True), id="answers-twice"
        ),
    ],
)
async def test_a_second_answer_is_never_sent(kernel: FakeKernel, device: DeviceFile) -> None:
    """The first one counts."""
    async with serving(kernel, device):
        unique = kernel.read(NODE, 0, 4096)

        assert await answered(kernel) == [Reply(unique, 0, DATA[:4096])]


async def test_many_small_buffers_are_one_answer(kernel: FakeKernel) -> None:
    """More of them than one writev takes."""
    pieces = [DATA[i : i + 8] for i in range(0, 16384, 8)]
    async with serving(kernel, MisbehavingDevice(lambda reply: reply(pieces) or True)):
        unique = kernel.read(NODE, 0, 16384)

        assert await answered(kernel) == [Reply(unique, 0, DATA[:16384])]


@pytest.mark.parametrize(
    ("opcode", "body", "error"),
    [
        pytest.param(Opcode.LOOKUP, b"nobody\0", errno.ENOENT, id="unknown-name"),
        pytest.param(Opcode.UNLINK, b"blob\0", errno.EROFS, id="change"),
        pytest.param(Opcode.WRITE, bytes(40), errno.EROFS, id="write"),
        pytest.param(4711, b"", errno.ENOSYS, id="unknown-opcode"),
        pytest.param(Opcode.READ, b"cut", errno.EIO, id="malformed"),
        pytest.param(Opcode.OPEN, struct.pack("<II", os.O_RDWR, 0), errno.EROFS, id="open-for-writing"),
    ],
)
async def test_what_can_not_be_done_is_refused(kernel: FakeKernel, opcode: int, body: bytes, error: int) -> None:
    """One errno each, and the session goes on."""
    async with serving(kernel, MemoryDevice(DATA)):
        unique = kernel.send(opcode, body)
        assert await answered(kernel) == [Reply(unique, error, b"")]

        unique = kernel.read(NODE, 0, 1)
        assert await answered(kernel) == [Reply(unique, 0, DATA[:1])]


@pytest.mark.parametrize("opcode", [Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT])
async def test_some_requests_take_no_answer(kernel: FakeKernel, opcode: int) -> None:
    """Answering them would confuse the kernel."""
    async with serving(kernel, MemoryDevice(DATA)):
        kernel.send(opcode, bytes(16))
        unique = kernel.send(Opcode.STATFS)

        assert [reply.unique for reply in await answered(kernel)] == [unique]


async def test_an_answer_goes_to_the_unique_that_asked(kernel: FakeKernel) -> None:
    """A request that was sent again has bit 63 set, and so has its answer."""
    async with serving(kernel, RemoteDevice(DATA)):
        unique = kernel.send(Opcode.READ, struct.pack("<QQIIQII", 0, 0, 1, 0, 0, 0, 0), node=NODE, unique=1 << 63 | 8)

        assert await answered(kernel) == [Reply(unique, 0, DATA[:1])]


class TestTakeOver:
    """A session that goes on where another daemon stopped."""

    async def test_open_requests_are_asked_for_first(self, kernel: FakeKernel) -> None:
        """FUSE_NOTIFY_RESEND is the first thing that the kernel hears."""
        async with serving(kernel, resumed=True):
            assert (await answered(kernel))[0] == Reply(0, -7, b"")

    async def test_a_request_waits_for_its_device(self, kernel: FakeKernel) -> None:
        """Files that are still open belong to devices that this daemon may register a moment later."""
        async with serving(kernel, resumed=True) as session:
            await answered(kernel)
            uniques = [
                kernel.read(NODE, 0, 4096),
                kernel.send(Opcode.LOOKUP, b"blob\0"),
                kernel.send(Opcode.GETATTR, bytes(16), node=NODE),
            ]
            other = kernel.send(Opcode.STATFS)
            assert [reply.unique for reply in await answered(kernel)] == [other]

            session.add("blob", MemoryDevice(DATA))

            replies = await answered(kernel, 3)
            assert [reply.unique for reply in replies] == uniques
            assert [reply.error for reply in replies] == [0, 0, 0]

    async def test_a_device_that_does_not_come_is_an_error(self, kernel: FakeKernel) -> None:
        """Once everything known is registered, nobody waits any more."""
        async with serving(kernel, resumed=True) as session:
            await answered(kernel)
            kernel.read(NODE, 0, 4096)
            kernel.send(Opcode.LOOKUP, b"blob\0")
            await asyncio.sleep(0)

            session.settle()

            assert [reply.error for reply in await answered(kernel, 2)] == [errno.EIO, errno.ENOENT]
            kernel.read(NODE, 0, 4096)
            assert [reply.error for reply in await answered(kernel)] == [errno.EIO]

    async def test_the_wait_has_a_bound(self, kernel: FakeKernel) -> None:
        """Also when nobody says that all is registered."""
        async with serving(kernel, resumed=True, grace_seconds=0.05):
            await answered(kernel)
            kernel.read(NODE, 0, 4096)

            assert [reply.error for reply in await answered(kernel)] == [errno.EIO]


class TestClosing:
    """Nobody waits for a daemon that is gone."""

    async def test_open_reads_are_left_to_the_next_daemon(self, kernel: FakeKernel) -> None:
        """The kernel sends them again; an answer now would be an error for the reader."""
        session = FuseSession(kernel.connection)
        device = RemoteDevice(DATA, gate=asyncio.Event())
        session.add("blob", device)
        session.start()
        kernel.read(NODE, 0, 4096)
        while not device.asked:
            await asyncio.sleep(0)

        await session.aclose(hand_over=True)

        assert kernel.replies() == []

    @pytest.mark.parametrize("begun", [True, False])
    async def test_open_reads_fail_before_an_unmount(self, kernel: FakeKernel, begun: bool) -> None:
        """Whether or not their task has taken its first step."""
        session = FuseSession(kernel.connection)
        device = RemoteDevice(DATA, gate=asyncio.Event())
        session.add("blob", device)
        session.start()
        unique = kernel.read(NODE, 0, 4096)
        while not (device.asked if begun else session.waiting):
            await asyncio.sleep(0)

        await session.aclose(hand_over=False)

        assert kernel.replies() == [Reply(unique, errno.EIO, b"")]

    async def test_parked_requests_fail_too(self, kernel: FakeKernel) -> None:
        """A request for a device that had not come yet."""
        async with serving(kernel, resumed=True):
            await answered(kernel)
            kernel.read(NODE, 0, 4096)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert [reply.error for reply in kernel.replies()] == [errno.EIO]

    async def test_closing_twice_is_fine_and_ends_the_wait(self, kernel: FakeKernel) -> None:
        """``ended`` tells the end that was asked for from the one that was not."""
        async with serving(kernel, MemoryDevice(DATA)) as session:
            waiter = asyncio.get_running_loop().create_task(session.ended())
            await asyncio.sleep(0)
            await session.aclose()
            assert await waiter is None
            await session.aclose()


async def test_failed_reads_are_one_line_in_the_log(kernel: FakeKernel, caplog: pytest.LogCaptureFixture) -> None:
    """An outage fails thousands of reads; the log says how many."""
    caplog.set_level(logging.WARNING)
    async with serving(kernel, RemoteDevice(DATA, broken=[range(len(DATA))])) as session:
        for offset in range(0, 20 * 4096, 4096):
            kernel.read(NODE, offset, 4096)
        await answered(kernel, 20)

        assert session.stats.failed_reads == 20
    assert len([record for record in caplog.records if "can not be read" in record.message]) == 1
