"""Whole steps are handed to the disk, each when it is complete."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from fastpull.cache import write_back
from fastpull.cache.write_back import start_writing

MIB = 1 << 20


@pytest.mark.parametrize(
    ("start", "end", "handed_over"),
    [
        (0, 4 * MIB - 1, []),
        (0, 4 * MIB, [(0, 4 * MIB)]),
        (4 * MIB, 4 * MIB, []),  # to the kernel a length of 0 is everything that follows
        (3 * MIB, 9 * MIB, [(0, 8 * MIB)]),
        (9 * MIB, 11 * MIB, []),
        (11 * MIB, 13 * MIB, [(8 * MIB, 4 * MIB)]),
    ],
)
def test_steps_that_were_completed_are_begun(
    monkeypatch: pytest.MonkeyPatch, start: int, end: int, handed_over: list[tuple[int, int]]
) -> None:
    calls: list[tuple[int, int]] = []

    def sync_file_range(_descriptor: int, offset: int, length: int, _flags: int) -> None:
        calls.append((offset, length))

    monkeypatch.setattr(write_back, "_libc", SimpleNamespace(sync_file_range=sync_file_range))

    start_writing(3, start, end)

    assert calls == handed_over


def test_the_kernel_takes_it(tmp_path: Path) -> None:
    """And where it does not, nobody is told."""
    with (tmp_path / "file").open("wb") as file:
        file.write(bytes(8 * MIB))
        start_writing(file.fileno(), 0, 8 * MIB)
        assert write_back._libc.sync_file_range(file.fileno(), 0, 4 * MIB, 2) == 0
    reading, writing = os.pipe()
    start_writing(writing, 0, 8 * MIB)
    os.close(reading)
    os.close(writing)
