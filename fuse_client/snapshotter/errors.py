"""What can go wrong with a snapshot, in containerd's words (errdefs). ``service.py`` maps them to gRPC."""

from __future__ import annotations

from fastpull.fuse_client.errors import NodeError


class SnapshotError(NodeError):
    """Base of everything this package raises on purpose."""


class SnapshotNotFoundError(SnapshotError):
    """There is no snapshot, or no parent, of that name."""


class SnapshotExistsError(SnapshotError):
    """The name is taken; for an extraction: the layer is there already, nothing is to be unpacked."""


class SnapshotPreconditionError(SnapshotError):
    """The snapshot is not in the state that the call needs."""


class SnapshotInvalidError(SnapshotError):
    """The request makes no sense whatever the state."""


class SnapshotUnavailableError(SnapshotError):
    """Not now: a mount, the proxy or a free worker is missing. Trying again may help."""


class SnapshotCancelledError(SnapshotError):
    """The caller gave up; nothing was kept."""
