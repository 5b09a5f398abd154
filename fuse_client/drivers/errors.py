"""What can go wrong between us and the kernel's mounts."""

from __future__ import annotations

import os
from pathlib import Path

from fastpull.fuse_client.errors import NodeError


class DriverError(NodeError):
    """Base of everything that this package raises on purpose."""


class MountError(DriverError):
    """The kernel refused to mount, unmount or attach something. ``code`` is its errno, 0 where there is none."""

    def __init__(self, what: str, target: Path | str, code: int, reason: str = "", *, remedy: str = "") -> None:
        super().__init__(f"{what} {target}: {reason or os.strerror(code)}", remedy=remedy)
        self.target = Path(target)
        self.code = code


class MountTimeoutError(MountError):
    """The kernel did not finish in time; what it waits for may still come."""

    def __init__(self, what: str, target: Path | str, seconds: float) -> None:
        super().__init__(what, target, 0, f"not done after {seconds:.0f} s")
