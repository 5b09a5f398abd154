"""What a session serves: the contract between the FUSE session and whoever has the bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from fastpull.fuse_client.errors import NodeError

Buffers = Sequence[bytes | memoryview]


class DeviceReadError(NodeError):
    """A range of a device can not be had. The read in question fails with EIO, no other."""


class DeviceFile(Protocol):
    """One read-only file of fixed size. The session never asks for bytes beyond ``size``."""

    @property
    def size(self) -> int:
        """Bytes; constant for the life of the file, a multiple of 4096.

        EROFS takes a read that comes back short for a hole and fills it with zeros: a device that is
        larger than its size would be read as zeros without any error.
        """
        ...

    def try_read(self, offset: int, length: int, reply: Callable[[Buffers], None]) -> bool:
        """Answer from what is here, without waiting for disk or network.

        If all bytes are in memory, call ``reply`` once with buffers of ``length`` bytes in total and return
        True; the buffers are copied before ``reply`` returns, and are no maps of files: see ``Channel.send``.
        Else return False with nothing called. Called on the event loop.
        """
        ...

    async def read(self, offset: int, length: int) -> Buffers:
        """Wait for the disk, fetch what is missing, and return ``length`` bytes.

        Bounded: raise ``DeviceReadError`` after the fetcher's own retries.
        """
        ...
