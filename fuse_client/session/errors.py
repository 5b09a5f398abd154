"""What can go wrong between us, the kernel's FUSE and the process that keeps its descriptor."""

from __future__ import annotations

from fastpull.fuse_client.errors import NodeError


class SessionError(NodeError):
    """Base of everything that this package raises on purpose."""


class ProtocolError(SessionError):
    """Bytes from ``/dev/fuse`` are no request that we understand.

    ``unique`` is the id to answer to, or 0 where the bytes do not even hold that.
    """

    def __init__(self, reason: str, unique: int = 0) -> None:
        super().__init__(f"malformed FUSE request: {reason}")
        self.unique = unique


class FuseVersionError(SessionError):
    """The kernel's FUSE is too old, or not the one that we speak."""

    def __init__(self, major: int, minor: int, wanted: str) -> None:
        super().__init__(
            f"the kernel speaks FUSE {major}.{minor}; {wanted} is needed",
            remedy='use Linux 4.20 or newer, or driver = "fuse"',
        )


class NodeIdCollisionError(SessionError):
    """Two names have one node id. With 63 bit ids that is a bug or an attack, never chance."""

    def __init__(self, name: str, other: str) -> None:
        super().__init__(f"the devices {name!r} and {other!r} would share one node id")


class KeeperError(SessionError):
    """The process that keeps the FUSE descriptor can not be started or does not answer as it should."""


class KeeperGoneError(KeeperError):
    """The keeper is gone, and with it what it kept."""


class SessionLockedError(SessionError):
    """Another daemon serves this run directory."""

    def __init__(self, path: str, owner: str) -> None:
        super().__init__(
            f"another fastpull-node ({owner}) holds {path}",
            remedy="stop it first, or give this one another run_dir",
        )


class ChannelClosedError(SessionError):
    """The FUSE mount is gone: unmounted, or its connection was aborted."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the FUSE mount of the devices is gone: {reason}")
