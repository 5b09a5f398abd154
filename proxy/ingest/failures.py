"""Why a layer could not be ingested, for how long that holds, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from fastpull.cache.errors import StoreFullError
from fastpull.image.errors import (
    ImageError,
    LayerDigestError,
    LimitExceededError,
    UnsupportedMediaTypeError,
)
from fastpull.proxy.errors import BlobFillError, BlobStoreFullError, DeniedError, MirrorError, UpstreamUnknownError

_LASTING_SECONDS = 600.0  # the bytes are to blame: only another version of us would see them differently
_PASSING_SECONDS = 10.0  # the network, the registry, the disk or a worker: soon again, but never in a loop

_REMEDIES: tuple[tuple[type[Exception], str], ...] = (
    (UnsupportedMediaTypeError, "nothing to do: nodes pull this image the usual way"),
    (LimitExceededError, "raise the limit under [ingest] if the image is trusted"),
    (LayerDigestError, "the registry holds a damaged layer: push the image again"),
    (ImageError, "the image itself is damaged or unusual: check it with `skopeo inspect`, push it again"),
    (DeniedError, 'give the proxy credentials that may pull it: [upstreams."NAME".credentials]'),
    (UpstreamUnknownError, "add the registry under [upstreams]"),
    (BlobStoreFullError, "raise cache.blob_bytes or free disk space"),
    (StoreFullError, "raise cache.chunk_bytes or free disk space"),
)
_DEFAULT_REMEDY = "try again; if it persists, check the registry and the proxy's log"


class LayerFailedError(Exception):
    """A layer's ingest has failed, now or recently. Nodes pull the image the usual way."""

    def __init__(self, diff_id: str, failure: Failure) -> None:
        super().__init__(failure.error)
        self.diff_id = diff_id
        self.failure = failure


@dataclass(frozen=True, slots=True)
class Failure:
    """One failed ingest. Until ``retry_at`` (of the given clock) a request gets this answer at once."""

    error: str
    remedy: str
    retry_at: float

    @classmethod
    def of(cls, subject: str, exc: Exception, now: float) -> Failure:
        lasting = isinstance(exc, ImageError)
        seconds = _LASTING_SECONDS if lasting else _PASSING_SECONDS
        return cls(f"{subject}: {str(exc) or type(exc).__name__}", remedy_for(exc), now + seconds)


class Failures:
    """The last failure of each layer or chain. Bounded: the oldest are forgotten first."""

    def __init__(self, clock: Callable[[], float], *, most: int = 1000) -> None:
        self._clock = clock
        self._most = most
        self._failures: dict[str, Failure] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._failures))

    def put(self, name: str, failure: Failure) -> None:
        self._failures.pop(name, None)
        self._failures[name] = failure
        while len(self._failures) > self._most:
            del self._failures[next(iter(self._failures))]

    def last(self, name: str) -> Failure | None:
        """The last failure, also when another attempt would be due."""
        return self._failures.get(name)

    def current(self, name: str) -> Failure | None:
        """The failure that is still the answer: no other attempt is due."""
        failure = self._failures.get(name)
        return failure if failure is not None and self._clock() < failure.retry_at else None

    def forget(self, name: str) -> None:
        self._failures.pop(name, None)


def remedy_for(exc: BaseException) -> str:
    """What somebody can do about an error. Pure."""
    if isinstance(exc, LayerFailedError):
        return exc.failure.remedy
    if isinstance(exc, BlobFillError) and isinstance(exc.cause, MirrorError):
        exc = exc.cause
    return next((remedy for kind, remedy in _REMEDIES if isinstance(exc, kind)), _DEFAULT_REMEDY)
