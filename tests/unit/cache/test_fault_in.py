"""Pages are present before the kernel copies out of them."""

import errno
import mmap
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastpull.cache.fault_in import fault_in

SIZE = 64 * mmap.PAGESIZE


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "mapped"
    path.write_bytes(bytes(range(256)) * (SIZE // 256))
    return path


@pytest.fixture
def mapped(path: Path) -> Iterator[memoryview]:
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    yield memoryview(mapped)


def present(path: Path) -> set[int]:
    """Which pages of the map of ``path`` are in our page tables (proc_pid_pagemap(5))."""
    line = next(line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(path)))
    first = int(line.partition("-")[0], 16) // mmap.PAGESIZE
    with open("/proc/self/pagemap", "rb") as file:
        file.seek(first * 8)
        entries = struct.unpack("<64Q", file.read(64 * 8))
    return {i for i, entry in enumerate(entries) if entry >> 63}


def test_what_the_buffers_show_becomes_present(path: Path, mapped: memoryview) -> None:
    """Every page of them, for buffers that touch, overlap, or lie apart in any order."""
    page = mmap.PAGESIZE
    mapped.obj.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]
    assert present(path) == set()

    fault_in([mapped[47 * page + 5 : 49 * page + 1], mapped[10 * page : 15 * page], mapped[15 * page : 17 * page]])

    assert {47, 48, 49, *range(10, 17)} <= present(path)


def test_memory_of_python_is_left_alone() -> None:
    """Bytes, views of bytes and of bytearrays, and nothing at all."""
    fault_in([b"bytes", memoryview(b"view"), memoryview(bytearray(5)), memoryview(b""), b""])
    fault_in([])


def test_a_page_that_the_disk_can_not_give_is_an_error(path: Path, mapped: memoryview) -> None:
    """EFAULT, as from writev; touching the page in Python would kill the process."""
    with path.open("r+b") as file:
        file.truncate(0)

    with pytest.raises(OSError, match="Bad address") as caught:
        fault_in([mapped[:100]])

    assert caught.value.errno == errno.EFAULT
