"""Which driver mounts, and why."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from fastpull.fuse_client.drivers.erofs import ErofsDriver, erofs_mounts
from fastpull.fuse_client.drivers.errors import DriverError
from fastpull.fuse_client.drivers.portable import PortableDriver
from fastpull.fuse_client.drivers.probe import KernelFeatures
from fastpull.fuse_client.portable.errors import INSTALL, PortableUnavailableError

Wanted = Literal["auto", "erofs", "fuse"]


class Choice(NamedTuple):
    """``name`` as the settings have it; ``reason`` for people."""

    name: Literal["erofs", "fuse"]
    reason: str


def choose(wanted: Wanted, features: KernelFeatures, *, has_pyfuse3: bool) -> Choice:
    """The best driver that this kernel allows, or the one that the settings name. Pure.

    Raise ``DriverError`` where it can not be used; the remedy says what to install.
    """
    if wanted != "fuse" and features.erofs_usable:
        how = "from files" if features.erofs_file_backed else "from loop devices"
        directly = ", directly" if features.erofs_directio else ""
        return Choice("erofs", f"the kernel mounts EROFS {how}{directly}")
    if wanted == "erofs":
        raise DriverError(f"EROFS can not be used: {features.erofs_problem}", remedy='set driver = "auto" or "fuse"')
    why = 'driver = "fuse"' if wanted == "fuse" else f"EROFS can not be used: {features.erofs_problem}"
    if not features.fuse_minor:
        raise DriverError(f"FUSE can not be used: {features.fuse_problem}", remedy="modprobe fuse")
    if has_pyfuse3:
        return Choice("fuse", why)
    if wanted == "fuse":
        raise PortableUnavailableError("it is not installed")
    raise DriverError(
        f"no driver can be used. {why}. The portable driver needs pyfuse3, which is not installed",
        remedy=f"{INSTALL}, or a kernel with EROFS: Linux 6.12, or 5.16 with CONFIG_EROFS_FS",
    )


def has_pyfuse3() -> bool:
    """Whether pyfuse3 is installed. Importing it would cost the daemon 20 MB."""
    return importlib.util.find_spec("pyfuse3") is not None


class _Mounts(Protocol):
    async def mount(self, bootstrap: Path, device: Path, target: Path) -> None: ...


class Drivers:
    """The chosen driver for new mounts, and both for what is mounted: settings may change between two daemons."""

    def __init__(self, choice: Choice, features: KernelFeatures, portable: PortableDriver) -> None:
        self._portable = portable
        self._chosen: _Mounts = ErofsDriver(features) if choice.name == "erofs" else portable

    async def mount(self, bootstrap: Path, device: Path, target: Path) -> None:
        await self._chosen.mount(bootstrap, device, target)

    async def unmount(self, target: Path, *, lazy: bool = False) -> None:
        await self._portable.unmount(target, lazy=lazy)

    def mounted(self, root: Path) -> Sequence[object]:
        return [*erofs_mounts(root), *self._portable.mounted(root)]

    def lost(self, target: Path, *, session_is_new: bool) -> bool:
        if self._portable.lost(target, session_is_new=session_is_new):
            return True
        return session_is_new and bool(erofs_mounts(target))
