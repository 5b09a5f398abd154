"""aiohttp's runner with the fast lane in front."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from fastpull.cache.digest import Digest
from fastpull.proxy.mirror.fast_lane import FastLane
from fastpull.proxy.mirror.routes import MIRROR
from fastpull.proxy.mirror.service import Mirror


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
        return FastLane(MirrorShelf(self.app[MIRROR]), server)


class MirrorShelf:
    """The mirror's blobs, for the fast lane."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror
        self.default_upstream = mirror.settings.mirror.default_upstream

    def label(self, upstream: str) -> str:
        self._mirror.upstreams.get(upstream)
        return upstream if self._mirror.upstreams.knows(upstream) else "other"

    def open(self, digest: Digest) -> tuple[int, int] | None:
        return self._mirror.blobs.files.open(digest) if self._mirror.blob_answers.is_checked(digest) else None
