"""The files that hold the chunks' bytes: appended to by one process, read by all, emptied by holes."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import threading
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path

from fastpull.cache.disk_space import punch
from fastpull.cache.records import WHOLE_FILE
from fastpull.cache.scratch import Scratch
from fastpull.cache.write_back import start_writing

log = logging.getLogger(__name__)

_IOV_MAX = 1024
_SUFFIX = ".chunks"
_AHEAD_BYTES = 256 << 10  # the kernel cuts one request to what its device takes at once
_ONE_BYTE = bytearray(1)


class Appender:
    """The end of a segment. The process that holds it is the only one that writes there (``flock``)."""

    def __init__(self, number: int, descriptor: int, position: int, *, flushes_early: bool) -> None:
        """``flushes_early``: the disk begins to write while more is appended."""
        self.number = number
        self.position = position  # where the next chunk goes
        self._flushes_early = flushes_early
        self.room = os.fstat(descriptor).st_size
        self._descriptor = descriptor

    def write(self, buffers: Sequence[bytes | memoryview]) -> None:
        """Append all buffers. Raise ``OSError``; then nothing counts as written."""
        begin = self.position
        for first in range(0, len(buffers), _IOV_MAX):
            part = buffers[first : first + _IOV_MAX]
            length = sum(map(len, part))
            written = os.pwritev(self._descriptor, part, self.position)
            if written < length:  # a full disk ends a long write short
                rest = memoryview(b"".join(part))[written:]
                while rest:
                    step = os.pwrite(self._descriptor, rest, self.position + length - len(rest))
                    rest = rest[step:]
            self.position += length
        if self._flushes_early:
            start_writing(self._descriptor, begin, self.position)

    def close(self) -> None:
        os.close(self._descriptor)


class Segments:
    """The directory of segment files."""

    def __init__(self, directory: Path, segment_bytes: int, *, flushes_early: bool = False) -> None:
        """``flushes_early``: for who will wait until what he wrote is on the disk."""
        self.segment_bytes = segment_bytes
        self.scratch = Scratch()
        self._directory = directory
        self._descriptors: dict[int, int] = {}
        self._lock = threading.Lock()
        self._flushes_early = flushes_early
        self._punches = True
        self._no_wait = os.RWF_NOWAIT

    def path(self, number: int) -> Path:
        return self._directory / f"{number}{_SUFFIX}"

    def numbers(self) -> list[int]:
        stems = [path.stem for path in self._directory.glob(f"*{_SUFFIX}")]
        return sorted(int(stem) for stem in stems if stem.isdecimal())

    def create(self, number: int) -> Appender:
        """The file has its final, sparse length at once.

        Inside a write transaction that commits the number: a file that is there already is of one that did not.
        """
        self.path(number).unlink(missing_ok=True)
        self.forget([number])
        descriptor = os.open(self.path(number), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o640)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(descriptor, self.segment_bytes)
            return Appender(number, descriptor, 0, flushes_early=self._flushes_early)
        except BaseException:
            os.close(descriptor)
            raise

    def adopt(self, number: int, end: int) -> Appender | None:
        """Go on where a process that is gone stopped; ``None`` when it is not gone.

        What it wrote behind ``end`` was never committed and is given back.
        """
        try:
            descriptor = os.open(self.path(number), os.O_RDWR)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            appender = Appender(number, descriptor, end, flushes_early=self._flushes_early)
            self._punch(descriptor, end, appender.room)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        return appender

    def sweep(self, ends: Mapping[int, int], known: Container[int]) -> None:
        """Clear up behind processes that were killed; what belongs to one that runs is locked and stays.

        Behind the committed ``ends`` of segments that are still written to nothing counts, and files of segments
        that are not ``known`` were created and never committed.
        """
        for number in self.numbers():
            if number in known and number not in ends:
                continue
            if (abandoned := self.adopt(number, ends.get(number, 0))) is not None:
                if number not in known:
                    self.path(number).unlink(missing_ok=True)
                abandoned.close()

    def read(self, number: int, offset: int, length: int) -> bytes:
        """A copy. Raise ``OSError`` where the disk fails or there is no such place; short where the file ends."""
        try:
            return os.pread(self._descriptor(number), length, offset)
        except OverflowError as exc:
            raise _no_such_place(self.path(number), offset) from exc

    def read_into(
        self, number: int, offset: int, buffers: Sequence[memoryview], length: int, *, wait: bool = True
    ) -> bool:
        """Fill the buffers, of ``length`` bytes in total. False = not without waiting for the disk.

        Raise ``OSError`` where the disk fails or the file ends.
        """
        descriptor = self._descriptor(number)
        try:
            done = os.preadv(descriptor, buffers[:_IOV_MAX], offset, 0 if wait else self._no_wait)
        except BlockingIOError:
            return False
        except OSError as exc:
            if exc.errno != errno.EOPNOTSUPP or wait or not self._no_wait:
                raise
            log.info("%s: this file system can not tell what is in memory; reads wait for it", self._directory)
            self._no_wait = 0
            return self.read_into(number, offset, buffers, length)
        except OverflowError as exc:
            raise _no_such_place(self.path(number), offset) from exc
        if done == length:
            return True
        if not wait:
            return False  # whoever waits gets to know what is wrong
        rest = list(buffers)
        left = done
        while done < length:  # a long read may come back short, or was of more buffers than one call takes
            while left >= len(rest[0]):
                left -= len(rest.pop(0))
            rest[0] = rest[0][left:]
            left = os.preadv(descriptor, rest[:_IOV_MAX], offset + done)
            if left == 0:
                raise OSError(errno.EIO, f"ends at {offset + done}", str(self.path(number)))
            done += left
        return True

    def read_ahead(self, number: int, start: int, end: int) -> int:
        """Have the disk begin to read what is not in the page cache of a range, and nothing around it.

        Return the bytes it was asked for, in steps of 256 KiB. Never raises.
        """
        asked = 0
        try:
            descriptor = self._descriptor(number)
            for position in range(start, end, _AHEAD_BYTES):
                try:
                    os.preadv(descriptor, [_ONE_BYTE], position, os.RWF_NOWAIT)
                except BlockingIOError:
                    length = min(_AHEAD_BYTES, end - position)
                    os.posix_fadvise(descriptor, position, length, os.POSIX_FADV_WILLNEED)
                    asked += length
        except OSError:
            return asked  # whoever then reads the bytes gets to know
        return asked

    def free(self, number: int, ranges: Iterable[tuple[int, int]]) -> None:
        """Give the whole blocks of the ranges back to the file system. Readers of them see zeros."""
        try:
            descriptor = os.open(self.path(number), os.O_RDWR)
        except FileNotFoundError:
            return
        try:
            length = os.fstat(descriptor).st_size
            for start, end in ranges:
                self._punch(descriptor, start, min(end, length))
        finally:
            os.close(descriptor)

    def remove(self, number: int) -> None:
        # Other processes may have it open, and that alone would keep the blocks of a removed file.
        self.free(number, [(0, WHOLE_FILE)])
        self.path(number).unlink(missing_ok=True)
        self.forget([number])

    def forget(self, numbers: Iterable[int]) -> None:
        """Close segments that are gone."""
        for number in numbers:
            with self._lock:
                descriptor = self._descriptors.pop(number, None)
            if descriptor is not None:
                os.close(descriptor)

    def close(self) -> None:
        self.forget(list(self._descriptors))

    def forget_removed(self) -> None:
        """Let go of segments that another process removed. It did so because no view needs them any more."""
        self.forget([number for number in list(self._descriptors) if not self.path(number).exists()])

    def sync(self, number: int) -> None:
        """Flush a segment's bytes to the disk, whoever wrote them."""
        try:
            descriptor = os.open(self.path(number), os.O_RDONLY)
        except FileNotFoundError:
            return
        try:
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)

    def allocated(self) -> int:
        total = 0
        for number in self.numbers():
            try:
                total += self.path(number).stat().st_blocks * 512
            except FileNotFoundError:
                continue
        return total

    def _descriptor(self, number: int) -> int:
        descriptor = self._descriptors.get(number)
        if descriptor is None:
            with self._lock:
                descriptor = self._descriptors.get(number)
                if descriptor is None:
                    descriptor = self._descriptors[number] = os.open(self.path(number), os.O_RDONLY)
        return descriptor

    def _punch(self, descriptor: int, start: int, end: int) -> None:
        if self._punches and not punch(descriptor, start, end):
            self._punches = False
            log.warning("%s: no holes on this file system; evicted space returns a segment at a time", self._directory)


def _no_such_place(path: Path, offset: int) -> OSError:
    """For a record that is damaged: no file has such an offset."""
    return OSError(errno.EINVAL, f"there is no offset {offset}", str(path))
