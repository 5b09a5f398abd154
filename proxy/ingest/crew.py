"""Threads that work on one thing together, and the bounded channels between them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class StoppedError(Exception):
    """Another thread of the crew failed, or the work was called off. Says nothing of its own."""


class Crew:
    """Owns the threads of one piece of work. The first failure stops all of them, and is what ``join`` raises.

    ``on_stop`` wakes threads that wait for something other than a channel.
    """

    def __init__(self, *, on_stop: Callable[[], None] = lambda: None) -> None:
        self._on_stop = on_stop
        self._failure: BaseException | None = None
        self._threads: list[threading.Thread] = []
        self.changed = threading.Condition()  # guards every channel of the crew, and ``_failure``

    def spawn(self, work: Callable[[], None], *, name: str) -> None:
        thread = threading.Thread(target=self.guard, args=(work,), name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def guard(self, work: Callable[[], None]) -> None:
        """Do ``work`` on this thread; if it fails, stop the crew."""
        try:
            work()
        except StoppedError:
            pass
        except BaseException as exc:  # noqa: BLE001 - raised again by join()
            self.stop(exc)

    def stop(self, why: BaseException) -> None:
        """Make every thread that uses a channel end. The first reason given is kept. From any thread."""
        with self.changed:
            if self._failure is None:
                self._failure = why
            self.changed.notify_all()
        self._on_stop()

    def check(self) -> None:
        """Raise ``StoppedError`` once the crew is to stop."""
        if self._failure is not None:
            raise StoppedError

    def join(self) -> None:
        """Wait until all threads have ended; raise the failure that stopped them, if one did."""
        for thread in self._threads:
            thread.join()
        if self._failure is not None:
            raise self._failure


class Channel(Generic[T]):
    """Hands items from ``put`` to iteration, in order, and makes the giver wait while ``capacity`` are under way.

    Any number of threads may iterate; ``givers`` threads put and then close. Raises ``StoppedError`` on both sides
    when the crew stops.
    """

    def __init__(self, crew: Crew, capacity: int, *, givers: int = 1) -> None:
        self._crew = crew
        self._changed = crew.changed
        self._capacity = capacity
        self._items: deque[T] = deque()
        self._givers = givers

    def put(self, item: T) -> None:
        with self._changed:
            while len(self._items) >= self._capacity:
                self._crew.check()
                self._changed.wait()
            self._crew.check()
            self._items.append(item)
            self._changed.notify_all()

    def close(self) -> None:
        """Nothing more will come from this giver."""
        with self._changed:
            self._givers -= 1
            self._changed.notify_all()

    def __iter__(self) -> Iterator[T]:
        while True:
            with self._changed:
                while not self._items and self._givers:
                    self._crew.check()
                    self._changed.wait()
                self._crew.check()
                if not self._items:
                    return
                item = self._items.popleft()
                self._changed.notify_all()
            yield item
            del item
