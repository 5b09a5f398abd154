"""The pipe that tells a follower that its leader stops, or is gone."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable

_LAST_SECONDS = 20.0  # more than a graceful stop takes


def watch(descriptor: int, ended: Callable[[], None]) -> None:
    """Call ``ended`` on the running loop when the other end of the pipe is closed, however that comes about.

    A thread watches, so that not even a loop that is stuck keeps the process alive: soon after, it ends in any case.
    """
    loop = asyncio.get_running_loop()

    def wait() -> None:
        while os.read(descriptor, 4096):
            pass
        try:
            loop.call_soon_threadsafe(ended)
        except RuntimeError:
            return  # the loop is closed: we leave already
        time.sleep(_LAST_SECONDS)
        os._exit(1)

    threading.Thread(target=wait, name="lifeline", daemon=True).start()
