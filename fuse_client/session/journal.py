"""The requests that a daemon has read and not answered, where its successor finds them.

The kernel writes each request straight into a slot of shared memory: what ``read`` took out of ``/dev/fuse`` is
there, whatever happens to the process in the next nanosecond. Kernels since 6.9 can send open requests again by
themselves (FUSE_NOTIFY_RESEND); for the others, the successor takes them from here.

The memory (memfd): ``SLOTS`` slots of 8192 bytes. A slot holds a request as the kernel wrote it, from its first
byte on; it begins with the request's length, u32, and 0 there means that the slot is free. A slot may name a
request that was answered just before a crash: answering it again does no harm, the kernel does not know it any
more. The layout goes with the name under which the keeper has the memory.
"""

from __future__ import annotations

import mmap
import os
import struct

from fastpull.fuse_client.session.protocol import MIN_BUFFER

SLOTS = 1024  # max_background is 512; the rest is for readers that do not count as background
_BYTES = SLOTS * MIN_BUFFER
_LENGTH = struct.Struct("<I")
_HEAD = struct.Struct("<IIQ")  # length, opcode, unique
_FREE = _LENGTH.pack(0)


class RequestJournal:
    """One slot takes the next request (``buffer``); ``hold`` keeps it there until ``release``.

    Invariant: each slot is the current one, or held, or free. Beyond ``SLOTS`` held requests, further ones go
    unrecorded.
    """

    def __init__(self, fd: int) -> None:
        """Over memory that ``create`` made; takes the descriptor. Raise ``OSError``."""
        try:
            self._memory = memoryview(mmap.mmap(fd, _BYTES))
            # Not through the map: looking at an untouched page there would take memory for it.
            lengths = [_LENGTH.unpack(os.pread(fd, _LENGTH.size, slot * MIN_BUFFER))[0] for slot in range(SLOTS)]
        finally:
            os.close(fd)
        self._left = [slot for slot, length in enumerate(lengths) if length]
        self._held: dict[int, int] = {}  # unique → slot
        self._free = list(range(SLOTS - 1, -1, -1))
        self._unrecorded = memoryview(bytearray(MIN_BUFFER))
        self._current = -1
        self.buffer = self._unrecorded
        """Where the next request belongs."""

    @staticmethod
    def create() -> int:
        """A descriptor of fresh memory."""
        fd = os.memfd_create("fastpull-requests", os.MFD_CLOEXEC)
        os.ftruncate(fd, _BYTES)
        return fd

    def begin(self, *, adopt: bool) -> list[bytes]:
        """Record what comes from now on. ``adopt``: hold, and return, what an earlier daemon left; else forget it.

        A crash at any point loses nothing that is adopted.
        """
        found = []
        for slot in self._left:
            request = bytes(self._slot(slot))
            length, _, unique = _HEAD.unpack_from(request)
            if adopt and length <= MIN_BUFFER and unique not in self._held:
                self._held[unique] = slot
                self._free.remove(slot)
                found.append(request[:length])
            else:
                self._clear(slot)
        self._left = []
        self._take_slot()
        return found

    def hold(self, unique: int) -> None:
        """The request just read stays open: keep it, and have the next one elsewhere. Once held is held."""
        if self._current >= 0 and unique not in self._held:
            self._held[unique] = self._current
            self._take_slot()

    def release(self, unique: int) -> None:
        """The request was answered; one that was not held is fine."""
        slot = self._held.pop(unique, None)
        if slot is not None:
            self._clear(slot)
            self._free.append(slot)
            if self._current < 0:
                self._take_slot()

    def _slot(self, slot: int) -> memoryview:
        return self._memory[slot * MIN_BUFFER : (slot + 1) * MIN_BUFFER]

    def _clear(self, slot: int) -> None:
        self._memory[slot * MIN_BUFFER : slot * MIN_BUFFER + _LENGTH.size] = _FREE

    def _take_slot(self) -> None:
        if not self._free:
            self._current, self.buffer = -1, self._unrecorded
            return
        self._current = self._free.pop()
        self.buffer = self._slot(self._current)
        # Present pages: a process that is being killed could not fault them in, and the kernel would end the
        # request with EIO. A request is longer than a page only in ways that we refuse.
        self._clear(self._current)
