"""A session and the real kernel: what readers of a device see."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import random
import signal
import stat
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import pytest
from fakes.devices import MemoryDevice, RemoteDevice, pattern
from harness.sessions import clear, finish_reader, start_reader

from fastpull.fuse_client.session.answers import agree
from fastpull.fuse_client.session.channel import Connection
from fastpull.fuse_client.session.fuse_mount import mount_fuse, read_init
from fastpull.fuse_client.session.journal import RequestJournal
from fastpull.fuse_client.session.server import FuseSession

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

SIZE = 3 * 2**20 + 5 * 4096
DATA = pattern(SIZE)


@pytest.fixture
def mountpoint(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "devices"
    path.mkdir()
    try:
        yield path
    finally:
        clear(tmp_path)


@pytest.fixture
async def session(mountpoint: Path) -> AsyncIterator[FuseSession]:
    fd = mount_fuse(mountpoint)
    os.write(fd, agree(read_init(fd))[1])
    session = FuseSession(Connection(fd, RequestJournal.create()))
    session.start()
    yield session
    await session.aclose(hand_over=False)


async def read(path: Path, reads: Sequence[tuple[int, int]]) -> list[tuple[int, str]]:
    return await asyncio.to_thread(finish_reader, start_reader(path, reads))


def expected(reads: Sequence[tuple[int, int]]) -> list[tuple[int, str]]:
    pieces = [DATA[offset : offset + size] for offset, size in reads]
    return [(len(piece), hashlib.sha256(piece).hexdigest()) for piece in pieces]


EDGES = [
    (0, SIZE),
    (0, 1),
    (1, 4096),
    (4095, 2),
    (2**20 - 1, 2),
    (2**20 - 5, 2**20 + 10),
    (SIZE - 1, 1),
    (SIZE - 1, 4096),
    (SIZE, 10),
    (SIZE + 10**9, 10),
]


@pytest.mark.parametrize("device", [MemoryDevice, RemoteDevice])
async def test_a_device_reads_like_a_file(
    session: FuseSession, mountpoint: Path, device: type[MemoryDevice | RemoteDevice]
) -> None:
    """At every offset and size, aligned or not, over the end too; local or fetched."""
    session.add("blob", device(DATA))
    seed = random.Random(7)
    reads = [*EDGES, *((seed.randrange(SIZE), seed.randrange(2 ** seed.randrange(22))) for _ in range(200))]

    assert await read(mountpoint / "blob", reads) == expected(reads)


async def test_readers_side_by_side_get_their_own_bytes(session: FuseSession, mountpoint: Path) -> None:
    """Of several devices, of which one is slow."""
    session.add("local", MemoryDevice(DATA))
    session.add("remote", RemoteDevice(DATA))
    seed = random.Random(8)
    work = [[(seed.randrange(SIZE), seed.randrange(200_000)) for _ in range(100)] for _ in range(6)]

    results = await asyncio.gather(
        *(read(mountpoint / ("local" if i % 2 else "remote"), reads) for i, reads in enumerate(work))
    )

    assert results == [expected(reads) for reads in work]


async def test_only_the_failing_read_gets_an_error(session: FuseSession, mountpoint: Path) -> None:
    """EIO, once; what is read before and after is right."""
    session.add("blob", RemoteDevice(DATA, broken=[range(100_000, 100_001)]))

    results = await read(mountpoint / "blob", [(0, 100_000), (99_999, 5), (100_001, 4096)])

    assert results == [*expected([(0, 100_000)]), (-errno.EIO, ""), *expected([(100_001, 4096)])]


async def test_a_device_looks_like_a_private_file(session: FuseSession, mountpoint: Path) -> None:
    """Only the daemon's user sees image content; names come and go with the devices."""
    session.add("blob", MemoryDevice(DATA))
    session.add("other", MemoryDevice(DATA[:4096]))

    assert sorted(await asyncio.to_thread(os.listdir, mountpoint)) == ["blob", "other"]
    seen = await asyncio.to_thread(os.stat, mountpoint / "blob")
    assert (stat.S_IMODE(seen.st_mode), seen.st_size, seen.st_nlink) == (0o400, SIZE, 1)

    session.remove("other")

    assert await asyncio.to_thread(os.listdir, mountpoint) == ["blob"]
    assert not await asyncio.to_thread(os.path.exists, mountpoint / "other")
    for change in (os.unlink, os.rmdir, os.mkdir):
        with pytest.raises(OSError) as caught:
            await asyncio.to_thread(change, mountpoint / "new")
        assert caught.value.errno in (errno.EROFS, errno.ENOENT)


async def test_a_device_may_be_replaced(session: FuseSession, mountpoint: Path) -> None:
    """A chain that was unmounted and comes back: the kernel remembers nothing that is wrong now."""
    session.add("blob", MemoryDevice(DATA))
    assert await read(mountpoint / "blob", [(0, SIZE)]) == expected([(0, SIZE)])
    session.remove("blob")

    session.add("blob", MemoryDevice(bytes(4096)))

    zeros = (4096, hashlib.sha256(bytes(4096)).hexdigest())
    assert await read(mountpoint / "blob", [(0, SIZE)]) == [zeros]


async def test_a_killed_reader_leaves_the_session_alone(session: FuseSession, mountpoint: Path) -> None:
    """The answer that nobody wants any more is dropped."""
    gate = asyncio.Event()
    device = RemoteDevice(DATA, gate=gate)
    session.add("blob", device)
    reader = start_reader(mountpoint / "blob", [(0, 4096)])
    async with asyncio.timeout(60):
        while not device.asked:
            await asyncio.sleep(0.01)

    reader.send_signal(signal.SIGKILL)
    gate.set()
    await asyncio.to_thread(reader.communicate, timeout=60)

    assert await read(mountpoint / "blob", [(0, 4096)]) == expected([(0, 4096)])


async def test_the_end_of_the_mount_is_noticed(session: FuseSession, mountpoint: Path) -> None:
    """Somebody unmounts under the session: it says so instead of waiting for ever."""
    await asyncio.to_thread(clear, mountpoint)

    async with asyncio.timeout(60):
        reason = await session.ended()

    assert reason is not None
    assert "FUSE mount of the devices is gone" in reason
