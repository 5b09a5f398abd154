"""The lock that pyfuse3's workers share: who holds it, waits for the next request."""

from __future__ import annotations

import asyncio
from collections import deque


class WorkerLock:
    """In place of ``asyncio.Lock``: a worker that comes again without having waited meanwhile, gets it again.

    ``asyncio.Lock`` is fair, so that each request is another worker's, and costs a turn of the event loop. Here the
    others are only looked at in the loop's next turn, which comes when a worker has to wait for something: for a
    request, while it holds the lock, or for content, and then another one takes over. Measured with ``find -ls`` of
    15,800 entries: 0.18 s of CPU instead of 0.27.

    Invariant: while the lock is free and somebody waits, a look is due, or one who was woken has not run yet.
    """

    def __init__(self) -> None:
        self._is_taken = False
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._look_is_due = False

    async def __aenter__(self) -> None:
        while self._is_taken:
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn in self._waiting:
                    self._waiting.remove(turn)
                else:
                    self._look_soon()  # it was woken, and will not come
                raise
        self._is_taken = True

    async def __aexit__(self, *_: object) -> None:
        self._is_taken = False
        self._look_soon()

    def _look_soon(self) -> None:
        if self._waiting and not self._look_is_due:
            self._look_is_due = True
            asyncio.get_running_loop().call_soon(self._look)

    def _look(self) -> None:
        self._look_is_due = False
        while not self._is_taken and self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
