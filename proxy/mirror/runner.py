"""aiohttp's runner with the fast lane in front."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from fastpull.proxy.mirror.fast_lane import FastLane
from fastpull.proxy.mirror.routes import MIRROR


class MirrorRunner(web.AppRunner):
    """``AppRunner`` for an application that holds a ``MIRROR``.

    Where each access is logged all requests take the long way: the log is written by aiohttp.
    """

    def __init__(self, app: web.Application, *, access_log: Any = None, **kwargs: Any) -> None:
        super().__init__(app, access_log=access_log, **kwargs)
        self._logs_access = access_log is not None

    @property
    def server(self) -> Any:
        """What sites make their protocols with."""
        server = super().server
        if server is None or self._logs_access or MIRROR not in self.app:
            return server
        return FastLane(self.app[MIRROR], server)
