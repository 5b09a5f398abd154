"""A disk that refuses a write, and would take the next."""

from __future__ import annotations

import errno
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fastpull.proxy.mirror import sink as module
from fastpull.proxy.mirror.sink import Sink


async def test_nothing_is_written_behind_a_write_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would land where the lost bytes belong, and be served in their place."""
    write_all, calls = module._write_all, []

    def full_once(*arguments: object) -> int:
        calls.append(arguments)
        if len(calls) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_all(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_write_all", full_once)
    written: list[tuple[int, int]] = []
    with (tmp_path / "file").open("wb") as file, ThreadPoolExecutor(1) as threads:
        sink = Sink(threads, file.fileno(), 0, lambda start, stop: written.append((start, stop)))
        await sink.put(b"first")
        with pytest.raises(OSError, match="No space"):
            await sink.flush()
        for _ in range(3):
            with pytest.raises(OSError, match="No space"):
                await sink.put(b"later")
        await sink.settle()

    assert written == []
    assert (tmp_path / "file").read_bytes() == b""
