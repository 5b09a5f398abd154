"""What a device has the disk read before it is asked for, and who waits for the disk where. Pure."""

from __future__ import annotations

DISTANCE_BYTES = 8 << 20  # before a reader that goes on and on; a request to a cloud disk takes 1 ms, 1 MiB at 1 GB/s
_STREAMS = 16  # followed at once
_GROWTH = 2  # bytes read ahead for each that is read, until the distance is reached

_SMALL_BYTES = 64 << 10
_QUICK_SECONDS = 0.0005
_LONGEST_SECONDS = 0.1  # that counts: after a disk that hung, some 40 reads until it is taken for quick again
_WEIGHT = 1 / 8


class ReadAhead:
    """Follows readers who had to wait for the disk and go on where they stopped.

    The chunks of a file lie in the order in which they came to the node, so that the kernel, which sees only places in
    the store's files, reads ahead in vain. Before: 0.25 GB/s of a large file from a disk of 1.8 GB/s.
    """

    def __init__(self, distance_bytes: int = DISTANCE_BYTES) -> None:
        self._distance = distance_bytes
        self._ahead: dict[int, int] = {}  # where a reader goes on → the end of what was read ahead for him

    def __bool__(self) -> bool:
        """Whether there is anybody to follow."""
        return bool(self._ahead)

    def waited(self, offset: int, length: int) -> None:
        """A read of the device had to wait for the disk."""
        end = offset + length
        if end not in self._ahead:
            if len(self._ahead) == _STREAMS:
                del self._ahead[next(iter(self._ahead))]
            self._ahead[end] = end

    def follow(self, offset: int, length: int) -> range | None:
        """A read of the device: which bytes to read ahead now, if any."""
        ahead = self._ahead.pop(offset, None)
        if ahead is None:
            return None
        end = offset + length
        begin = max(ahead, end)
        stop = max(begin, min(end + self._distance, begin + _GROWTH * length))
        self._ahead[end] = stop
        return range(begin, stop) if stop > begin else None

    def was_in_memory(self, offset: int, length: int) -> None:
        """Nothing of what ``follow`` named had to be read: let this reader go until he waits again."""
        self._ahead.pop(offset + length, None)


class DiskWaits:
    """Tells whether waiting for the disk takes less time than having a thread wait.

    To and from a thread takes 150 us. A small read that takes less than three times that is waited for by all; so one
    reader gets 4,000 instead of 2,500 reads of 4 KiB a second from a disk that gives 5,000. Where the disk is slower,
    or the read is larger, nobody else waits for it.
    """

    def __init__(self) -> None:
        self._mean = 0.0

    def is_quick(self, length: int) -> bool:
        return length <= _SMALL_BYTES and self._mean < _QUICK_SECONDS

    def took(self, length: int, seconds: float) -> None:
        """A read of ``length`` bytes waited for the disk so long."""
        if length <= _SMALL_BYTES:
            self._mean += _WEIGHT * (min(seconds, _LONGEST_SECONDS) - self._mean)
