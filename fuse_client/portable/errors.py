"""What can go wrong with the portable driver and its processes."""

from __future__ import annotations

from fastpull.fuse_client.drivers.errors import DriverError
from fastpull.fuse_client.errors import NodeError

INSTALL = "pip install fastpull-proxy[node] (it builds pyfuse3: libfuse3-dev, pkg-config and a C compiler are needed)"


class PortableUnavailableError(DriverError):
    """pyfuse3 is not installed, or can not be loaded."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the portable driver needs pyfuse3: {reason}", remedy=INSTALL)


class ChildError(DriverError):
    """The process that should serve a mount did not start."""


class FrameError(NodeError):
    """Bytes between a child and the daemon are not the frames of this version."""


class DaemonAwayError(NodeError):
    """The daemon did not answer in time; only the read that waited fails."""

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"no answer from the node daemon within {seconds:.0f} s", remedy="start it: fastpull-node serve"
        )


class ReadRefusedError(NodeError):
    """The daemon could not get the bytes; only the read in question fails. ``code`` is its errno."""

    def __init__(self, code: int, offset: int, length: int) -> None:
        super().__init__(f"{length} bytes of the device at {offset} can not be had")
        self.code = code
