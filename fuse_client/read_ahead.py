"""What a device has the disk read before it is asked for, and who waits for the disk where. Pure."""

from __future__ import annotations

DISTANCE_BYTES = 8 << 20  # before a reader that goes on and on; a request to a cloud disk takes 1 ms, 1 MiB at 1 GB/s
_STREAMS = 16  # followed at once
_GROWTH = 2  # bytes read ahead for each that is read, until the distance is reached

_SHORT_SECONDS = 0.002
_LONGEST_SECONDS = 0.1  # that counts: after a disk that hung, some 15 reads until it is waited for again
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

    To and from a thread takes 150 us, which one reader of a quick disk would wait in vain 14,000 times for an import of
    PyTorch (7.1 s instead of 4.6). Where the disk is slow, nobody else waits for it.
    """

    def __init__(self) -> None:
        self._mean = 0.0

    @property
    def are_short(self) -> bool:
        return self._mean < _SHORT_SECONDS

    def took(self, seconds: float) -> None:
        """A read waited for the disk so long."""
        self._mean += _WEIGHT * (min(seconds, _LONGEST_SECONDS) - self._mean)
