"""A blob is read as far as it is there, and no further."""

import threading
from pathlib import Path

import pytest

from fastpull.proxy.ingest.crew import StoppedError
from fastpull.proxy.ingest.growing_file import GrowingFile

TIMEOUT = 60


def test_bytes_are_read_as_soon_as_they_are_announced(tmp_path: Path) -> None:
    path = tmp_path / "blob"
    data = bytes(range(256)) * 4000
    path.write_bytes(data)
    seen: list[int] = []
    blob = GrowingFile(path, len(data), seen.append)
    pieces = iter(blob)
    blob.grow(10)
    assert next(pieces) == data[:10]
    blob.grow(5)  # announcements never take anything back
    blob.grow(1000)
    assert next(pieces) == data[10:1000]
    blob.grow(len(data) + 99)
    assert b"".join(pieces) == data[1000:]
    assert seen[0] == 10
    assert seen[-1] == len(data)


def test_a_file_may_grow_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "blob"
    path.touch()
    blob = GrowingFile(path, 300_000, lambda _: None)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.extend(blob))
    reader.start()
    with path.open("ab", buffering=0) as file:
        for size in range(30_000, 300_001, 30_000):
            file.write(b"x" * 30_000)
            blob.grow(size)
    reader.join(TIMEOUT)
    assert b"".join(got) == b"x" * 300_000


def test_an_empty_file_has_no_pieces(tmp_path: Path) -> None:
    path = tmp_path / "blob"
    path.touch()
    assert list(GrowingFile(path, 0, lambda _: None)) == []


def test_a_file_shorter_than_announced_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "blob"
    path.write_bytes(b"short")
    blob = GrowingFile(path, 100, lambda _: None)
    blob.grow(100)
    with pytest.raises(OSError, match="ends after 5 bytes"):
        list(blob)


def test_a_waiting_reader_can_be_stopped(tmp_path: Path) -> None:
    path = tmp_path / "blob"
    path.touch()
    blob = GrowingFile(path, 100, lambda _: None)
    outcome: list[type] = []

    def read() -> None:
        try:
            list(blob)
        except StoppedError as exc:
            outcome.append(type(exc))

    reader = threading.Thread(target=read)
    reader.start()
    blob.stop()
    reader.join(TIMEOUT)
    assert outcome == [StoppedError]
