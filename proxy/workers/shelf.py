"""The complete blobs that a follower may answer for."""

from __future__ import annotations

import os
from collections import OrderedDict

from fastpull.cache.digest import Digest
from fastpull.proxy.errors import UpstreamUnknownError
from fastpull.proxy.workers.tally import Tally

_MAX_KNOWN = 65536


class LearnedShelf:
    """Blobs on disk, of which the leader has already answered for at least one request.

    Its answer told what only it can know: that the blob is no manifest in disguise, and how long it is. Both hold
    for ever, as the digest does. Everything that may change is looked up for each request: whether the file is
    there, and whether it is still as long. So what the leader removes is gone here at the same moment.

    A file is put in its place when it is complete and verified, never before (``mirror/blob_files.py``).
    """

    def __init__(self, blobs: str, default_upstream: str, upstreams: tuple[str, ...], tally: Tally) -> None:
        self.default_upstream = default_upstream
        self._prefix = f"{blobs}/"
        self._upstreams = frozenset(upstreams)
        self._tally = tally
        self._sizes: OrderedDict[Digest, int] = OrderedDict()

    def label(self, upstream: str) -> str:
        """Raise ``UpstreamUnknownError`` for one that the settings do not name: whether it is let, the leader says."""
        if upstream not in self._upstreams:
            raise UpstreamUnknownError(upstream)
        return upstream

    def open(self, digest: Digest) -> tuple[int, int] | None:
        size = self._sizes.get(digest)
        if size is None:
            return None
        try:
            fd = os.open(f"{self._prefix}{digest.hex[:2]}/{digest.hex}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        if os.fstat(fd).st_size != size:
            os.close(fd)
            return None
        self._tally.use_blob(digest)
        return fd, size

    def learn(self, digest: Digest, size: int) -> None:
        """The leader has answered for this blob, and said that it is so long."""
        self._sizes[digest] = size
        if len(self._sizes) > _MAX_KNOWN:
            self._sizes.popitem(last=False)

    def forget(self, digest: Digest) -> None:
        """Let the leader answer next: it removes what can not be read."""
        self._sizes.pop(digest, None)
