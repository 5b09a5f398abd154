"""What the mirror raises on purpose, and what each error means to an OCI client.

The table at the end is the only place that knows HTTP statuses. containerd goes on to its next host
after 403, 404 and 5xx; it asks the same host again, without waiting, after 408 and 429, and gives up
the whole pull after a 3xx that leads nowhere. So "go elsewhere" is 404 or 503 here, whatever upstream said.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fastpull.cache.digest import Digest


class MirrorError(Exception):
    """Base of everything the mirror raises on purpose. The text is fit to be shown to a user."""

    is_transient: ClassVar[bool] = False
    """May the next attempt succeed without anybody's doing? Then a stale tag is better than this error."""

    retry_after_seconds: float | None = None


class MalformedNameError(MirrorError):
    """A repository, tag or image reference that no registry would accept."""


class MalformedDigestInPathError(MirrorError):
    """A digest in a request path that is none, or is of another algorithm than sha256."""


class UpstreamUnknownError(MirrorError):
    """The request names a registry that the settings do not."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f'no upstream {name[:200]!r}; add [upstreams."{name[:200]}"] to the settings, or allow_any_upstream = true'
        )
        self.name = name


class UpstreamForbiddenError(MirrorError):
    """The upstream, or where it leads, is not to be talked to: a private address, a foreign realm, a loop."""


class RepositoryUnknownError(MirrorError):
    """Upstream has no such repository, or does not have what was asked of it."""


class ManifestUnknownError(MirrorError):
    """Upstream has no such manifest or tag."""

    def __init__(self, upstream: str, repository: str, reference: object) -> None:
        super().__init__(f"{upstream}/{repository} has no manifest {reference}")


class BlobUnknownError(MirrorError):
    """Upstream has no such blob."""

    def __init__(self, upstream: str, repository: str, digest: Digest) -> None:
        super().__init__(f"{upstream}/{repository} has no blob {digest}")


class DeniedError(MirrorError):
    """Upstream refuses, with or without our credentials."""

    def __init__(self, upstream: str, subject: str, detail: str = "") -> None:
        super().__init__(
            f"{upstream} denies access to {subject}{': ' + detail if detail else ''}; "
            f'it does not exist, or [upstreams."{upstream}".credentials] lacks the right to pull it'
        )


class UpstreamUnavailableError(MirrorError):
    """Upstream can not be reached, is too slow, or fails."""

    is_transient = True


class ThrottledError(MirrorError):
    """Upstream asks us to come back later (429)."""

    is_transient = True

    def __init__(self, upstream: str, detail: str, retry_after_seconds: float | None) -> None:
        super().__init__(f"{upstream} limits our requests{': ' + detail if detail else ''}")
        self.retry_after_seconds = retry_after_seconds


class UpstreamInvalidError(MirrorError):
    """Upstream's answer is not what the protocol, or the digest, promises."""

    is_transient = True


class BlobStoreFullError(MirrorError):
    """The blob does not fit into the quota or on the disk. It can still be passed through."""


class BlobStoreError(MirrorError):
    """The disk fails."""


class BlobFillError(MirrorError):
    """The transfer of a blob from upstream ended before its last verified byte."""

    is_transient = True

    def __init__(self, digest: Digest, cause: BaseException | str) -> None:
        super().__init__(f"blob {digest.hex[:12]} was not completed: {cause}")
        self.digest = digest
        self.cause = cause


class RangeNotSatisfiableError(MirrorError):
    """RFC 9110, 15.5.17: the range starts behind the end."""

    def __init__(self, header: str, size: int) -> None:
        super().__init__(f"range {header[:80]!r} is outside of {size} bytes")
        self.size = size


class ReadOnlyError(MirrorError):
    """A pull-through mirror takes no uploads and deletes nothing."""


@dataclass(frozen=True, slots=True)
class Answer:
    """How an error is told to an OCI client (distribution-spec, "Error Codes")."""

    status: int
    code: str


_ANSWERS: tuple[tuple[type[MirrorError], Answer], ...] = (
    (MalformedNameError, Answer(400, "NAME_INVALID")),
    (MalformedDigestInPathError, Answer(400, "DIGEST_INVALID")),
    (UpstreamUnknownError, Answer(404, "NAME_UNKNOWN")),
    (UpstreamForbiddenError, Answer(403, "DENIED")),
    (RepositoryUnknownError, Answer(404, "NAME_UNKNOWN")),
    (ManifestUnknownError, Answer(404, "MANIFEST_UNKNOWN")),
    (BlobUnknownError, Answer(404, "BLOB_UNKNOWN")),
    (DeniedError, Answer(403, "DENIED")),
    (ThrottledError, Answer(503, "TOOMANYREQUESTS")),
    (RangeNotSatisfiableError, Answer(416, "SIZE_INVALID")),
    (ReadOnlyError, Answer(405, "UNSUPPORTED")),
    (MirrorError, Answer(503, "UNAVAILABLE")),  # the rest: go elsewhere, this may heal
)


def answer_for(error: MirrorError) -> Answer:
    if isinstance(error, BlobFillError) and isinstance(error.cause, MirrorError):
        return answer_for(error.cause)
    return next(answer for kind, answer in _ANSWERS if isinstance(error, kind))
