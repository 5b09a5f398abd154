"""Is this node ready to go live? Pure: ``doctor_facts.py`` looks, this judges.

Each check gives one finding, or a few, in words for the operator: what was found, and the remedy where it is not as
it should be. A fact that could not be had is judged too: what nobody could see is a warning at least.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec

from fastpull.config.node import NodeSettings
from fastpull.config.units import GiB
from fastpull.fuse_client.doctor_containerd import ContainerdFacts, Finding, fail, ok, warn
from fastpull.fuse_client.doctor_containerd import checks as containerd_checks
from fastpull.fuse_client.drivers.choice import choose
from fastpull.fuse_client.drivers.errors import DriverError
from fastpull.fuse_client.drivers.probe import KernelFeatures
from fastpull.fuse_client.portable.errors import INSTALL

__all__ = ["ContainerdFacts", "Facts", "Finding", "PlaceFacts", "ProxyFacts", "examine"]

OLDEST_FUSE_MINOR = 28  # Linux 4.20: what ``session/answers.py`` needs
CLOCK_WARN_SECONDS = 5.0  # an HTTP date has whole seconds, and an answer takes a while
CLOCK_FAIL_SECONDS = 300.0  # certificates and tokens stop being valid
LEAST_FREE_BYTES = 2 * GiB
LOCAL_FILE_SYSTEMS = frozenset({"ext4", "xfs", "btrfs", "ext3", "f2fs", "zfs"})
MEMORY_FILE_SYSTEMS = frozenset({"tmpfs", "ramfs"})


class ProxyFacts(msgspec.Struct, frozen=True, kw_only=True):
    url: str
    error: str = ""  # why it can not be reached
    not_ready: str = ""  # what it says it lacks
    ahead_seconds: float | None = None  # its clock against ours; None = it named no date


class PlaceFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A directory of ours, or where it will be made."""

    path: str
    exists: bool
    uid: int = 0
    mode: int = 0o700  # permission bits
    fstype: str = ""
    free_bytes: int = 0
    error: str = ""


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    is_root: bool
    version: str  # ours
    kernel: KernelFeatures | None = None  # None = only root can find out
    dev_fuse: str = ""  # why /dev/fuse can not be opened
    pyfuse3: str = ""  # why it can not be imported; "absent" = it is not installed
    containerd: ContainerdFacts
    snapshotter: str = ""  # why nobody answers on its socket
    daemon_version: str = ""  # empty = none runs
    proxies: tuple[ProxyFacts, ...] = ()
    root: PlaceFacts
    run_dir: PlaceFacts


def examine(facts: Facts, settings: NodeSettings) -> list[Finding]:
    """Every finding, in the order in which one would mend things."""
    findings = [finding for check in _CHECKS for finding in check(facts, settings)]
    return [*findings, *containerd_checks(facts.containerd, settings)]


def _user(facts: Facts, _settings: NodeSettings) -> Iterator[Finding]:
    if facts.is_root:
        yield ok("user", "root, as the daemon needs")
    else:
        yield fail("user", "not root: half of this can not be seen", "sudo fastpull-node doctor")


def _kernel(facts: Facts, _settings: NodeSettings) -> Iterator[Finding]:
    kernel = facts.kernel
    if kernel is None:
        yield warn("kernel", "not tried, only root can mount", "sudo fastpull-node doctor")
    elif not kernel.fuse_minor:
        yield fail("kernel", f"Linux {kernel.release} has no FUSE: {kernel.fuse_problem}", "modprobe fuse")
    elif kernel.fuse_minor < OLDEST_FUSE_MINOR:
        yield fail("kernel", f"Linux {kernel.release} speaks FUSE 7.{kernel.fuse_minor}", "use Linux 4.20 or newer")
    else:
        resend = "" if kernel.fuse_resend else "; open reads are kept by the daemon, the kernel can not send them again"
        yield ok("kernel", f"Linux {kernel.release}, FUSE 7.{kernel.fuse_minor}{resend}")


def _dev_fuse(facts: Facts, _settings: NodeSettings) -> Iterator[Finding]:
    if facts.dev_fuse:
        yield fail("/dev/fuse", facts.dev_fuse, "modprobe fuse; in a container, pass the device in")
    else:
        yield ok("/dev/fuse", "can be opened")


def _driver(facts: Facts, settings: NodeSettings) -> Iterator[Finding]:
    if facts.kernel is None:
        return
    try:
        choice = choose(settings.driver, facts.kernel, has_pyfuse3=facts.pyfuse3 != "absent")
    except DriverError as exc:
        yield fail("driver", str(exc), exc.remedy)
        return
    if choice.name == "fuse" and facts.pyfuse3:
        yield fail("driver", f"pyfuse3 can not be loaded: {facts.pyfuse3}", INSTALL)
    elif choice.name == "fuse" and settings.driver == "auto":
        yield warn(
            "driver",
            f"fuse, the slower one: {choice.reason}",
            "a kernel with EROFS (Linux 6.12, or 5.16 with CONFIG_EROFS_FS) reads and lists faster",
        )
    else:
        yield ok("driver", f"{choice.name}: {choice.reason}")


def _daemon(facts: Facts, settings: NodeSettings) -> Iterator[Finding]:
    if not facts.daemon_version:
        yield fail("daemon", "does not run", "start it before containerd: fastpull-node serve")
        return
    if facts.daemon_version != facts.version:
        yield warn(
            "daemon",
            f"runs version {facts.daemon_version}, installed is {facts.version}",
            "fastpull-node stop --keep-mounts, then start it anew",
        )
    else:
        yield ok("daemon", f"runs version {facts.daemon_version}")
    if facts.snapshotter:
        yield fail(
            "snapshotter",
            f"{settings.snapshotter.socket}: {facts.snapshotter}",
            "start the daemon without --no-snapshotter, and look into its log",
        )
    else:
        yield ok("snapshotter", f"answers on {settings.snapshotter.socket}")


def _proxies(facts: Facts, _settings: NodeSettings) -> Iterator[Finding]:
    usable = [proxy for proxy in facts.proxies if not proxy.error and not proxy.not_ready]
    bad: Callable[[str, str, str], Finding] = warn if usable else fail
    for proxy in facts.proxies:
        if proxy.error:
            remedy = "check that fastpull-proxy serve runs there and that `proxies` in the settings names it"
            yield bad("proxy", f"{proxy.url} can not be reached: {proxy.error}", remedy)
        elif proxy.not_ready:
            yield bad("proxy", f"{proxy.url} is not ready: {proxy.not_ready}", "look into the proxy's log")
        else:
            yield ok("proxy", f"{proxy.url} is ready")
        yield from _clock(proxy)


def _clock(proxy: ProxyFacts) -> Iterator[Finding]:
    if proxy.ahead_seconds is None:
        return
    off = abs(proxy.ahead_seconds)
    text = f"{off:.0f} s {'behind' if proxy.ahead_seconds > 0 else 'ahead of'} {proxy.url}"
    remedy = "synchronise the clocks (chrony, systemd-timesyncd)"
    if off > CLOCK_FAIL_SECONDS:
        yield fail("clock", f"{text}: certificates and tokens will not be valid", remedy)
    elif off > CLOCK_WARN_SECONDS:
        yield warn("clock", text, remedy)
    else:
        yield ok("clock", f"agrees with {proxy.url}")


def _root(facts: Facts, settings: NodeSettings) -> Iterator[Finding]:
    place = facts.root
    yield from _permissions("root", place, "chmod 0711")
    if place.fstype in MEMORY_FILE_SYSTEMS:
        yield fail("root", f"{place.path} is on {place.fstype}: chunks would fill the memory", "put `root` on a disk")
    elif place.fstype in {"overlay", "fuse.fuse-overlayfs"}:
        yield fail(
            "root", f"{place.path} is on {place.fstype}, on which containers can not be stacked", "mount a disk there"
        )
    elif place.fstype in LOCAL_FILE_SYSTEMS:
        yield ok("root", f"{place.path} is on {place.fstype}")
    elif place.fstype:
        yield warn("root", f"{place.path} is on {place.fstype}", "use ext4 or xfs on a local disk; never a network")
    yield from _disk(place, settings)


def _disk(place: PlaceFacts, settings: NodeSettings) -> Iterator[Finding]:
    if place.error:
        return
    free = f"{place.free_bytes / GiB:.1f} GiB free for {place.path}"
    if place.free_bytes < LEAST_FREE_BYTES:
        yield fail("disk", free, "make room: the daemon needs 2 GiB at least")
    elif place.free_bytes < settings.cache.max_bytes:
        yield warn(
            "disk",
            f"{free}; [cache] max_bytes allows {settings.cache.max_bytes / GiB:.1f} GiB",
            "lower max_bytes or make room; a full disk makes starts slow, not wrong",
        )
    else:
        yield ok("disk", free)


def _run_dir(facts: Facts, _settings: NodeSettings) -> Iterator[Finding]:
    place = facts.run_dir
    yield from _permissions("run_dir", place, "chmod 0700")
    if place.fstype and place.fstype not in MEMORY_FILE_SYSTEMS:
        yield warn("run_dir", f"{place.path} is on {place.fstype} and outlives a boot", "use a directory below /run")


def _permissions(check: str, place: PlaceFacts, mode: str) -> Iterator[Finding]:
    if place.error:
        yield fail(check, f"{place.path}: {place.error}", "name another directory in the settings")
    elif not place.exists:
        yield ok(check, f"{place.path} will be made by the daemon")
    elif place.uid != 0:
        yield fail(check, f"{place.path} belongs to user {place.uid}", f"chown root {place.path}")
    elif place.mode & 0o022:
        yield fail(check, f"{place.path} can be written by others (mode {place.mode:04o})", f"{mode} {place.path}")


_CHECKS = (_user, _kernel, _dev_fuse, _driver, _root, _run_dir, _proxies, _daemon)
