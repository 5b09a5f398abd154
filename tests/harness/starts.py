"""Start an image as a person would, with ``ctr``, and take the times: pulled, started, ready."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.containerd import SNAPSHOTTER, Containerd
from harness.waiting import until

NAMESPACE = "default"
STARTED, READY = "started", "ready"  # first words of what the image's program prints


@dataclass(frozen=True, slots=True)
class Start:
    """Seconds since the pull began."""

    pulled: float
    started: float  # the program's first line
    ready: float  # its line after the imports
    says: str


def start(
    containerd: Containerd,
    image: str,
    snapshotter: str,
    *,
    before_removal: Callable[[], None] = lambda: None,
    seconds: float = 900.0,
) -> Start:
    """Pull and run ``image``; remove it again with everything it left in containerd."""
    containerd.ctr("content", "prune", "references", namespace=NAMESPACE)
    began = time.monotonic()
    pull(containerd, image, snapshotter, seconds=seconds)
    pulled = time.monotonic() - began
    try:
        lines = run_container(containerd, image, snapshotter, seconds=seconds)
        before_removal()
    finally:
        remove(containerd, image)
    for word in (STARTED, READY):
        if word not in lines:
            raise AssertionError(f"the container never said {word!r}")
    return Start(pulled, lines[STARTED][0] - began, lines[READY][0] - began, lines[READY][1])


def pull(containerd: Containerd, image: str, snapshotter: str, *, seconds: float = 900.0) -> None:
    if snapshotter == SNAPSHOTTER:
        # What CRI and nerdctl do by themselves; ctr of containerd 1.6 fetches every layer first.
        containerd.ctr_remote(
            *("images", "rpull", "--hosts-dir", containerd.certs, "--snapshotter", snapshotter, image),
            namespace=NAMESPACE,
            seconds=seconds,
        )
    else:
        containerd.ctr(
            *("images", "pull", "--hosts-dir", containerd.certs, "--snapshotter", snapshotter, image),
            namespace=NAMESPACE,
            seconds=seconds,
        )


def until_connected(containerd: Containerd, snapshotter: str) -> None:
    """Wait until containerd has noticed, at its own pace, that a snapshotter that was restarted is back."""

    def answers() -> bool:
        snapshots = ("snapshots", "--snapshotter", snapshotter)
        containerd.ctr(*snapshots, "prepare", "probe", namespace=NAMESPACE)
        containerd.ctr(*snapshots, "rm", "probe", namespace=NAMESPACE)
        return True

    until(answers, "containerd reaches its snapshotter", every=0.5, ignore=(AssertionError,))


def run_container(
    containerd: Containerd, image: str, snapshotter: str, *, seconds: float = 900.0
) -> dict[str, tuple[float, str]]:
    """Run it to its end. For each line of output, by first word: when it came (monotonic) and the whole line."""
    command = ["ctr", "--address", str(containerd.socket), "--namespace", NAMESPACE, "run", "--rm", "--net-host"]
    command += ["--snapshotter", snapshotter, image, f"start-{os.getpid()}-{time.monotonic_ns()}"]
    lines: dict[str, tuple[float, str]] = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as child:
        assert child.stdout is not None
        try:
            deadline = time.monotonic() + seconds
            for line in child.stdout:
                if words := line.replace(":", " ").split():
                    lines.setdefault(words[0], (time.monotonic(), line.strip()))
                if time.monotonic() > deadline:
                    break
        finally:
            with contextlib.suppress(ProcessLookupError):
                if child.poll() is None and time.monotonic() > deadline:
                    child.kill()
    if child.returncode:
        said = " | ".join(line for _, line in lines.values())
        raise AssertionError(f"ctr run ended with {child.returncode}: {said[-800:]}")
    return lines


def remove(containerd: Containerd, image: str) -> None:
    """The image, and by a whole garbage collection its snapshots and blobs."""
    containerd.ctr("images", "rm", "--sync", image, namespace=NAMESPACE, check=False)
    containerd.ctr("content", "prune", "references", namespace=NAMESPACE)


@contextlib.contextmanager
def received_bytes(interface: str = "lo") -> Iterator[list[int]]:
    """Bytes that ``interface`` received meanwhile: appended to the list at the end."""
    counter = Path(f"/sys/class/net/{interface}/statistics/rx_bytes")
    before = int(counter.read_text())
    found: list[int] = []
    yield found
    found.append(int(counter.read_text()) - before)


def disk_bytes(*roots: Path) -> int:
    """What lies below the roots, as allocated, each inode once and nothing of other mounts."""
    total = 0
    seen: set[tuple[int, int]] = set()
    for root in roots:
        device = root.stat().st_dev if root.exists() else -1
        for directory, subdirectories, names in os.walk(root):
            subdirectories[:] = [d for d in subdirectories if os.lstat(os.path.join(directory, d)).st_dev == device]
            for name in names:
                info = os.lstat(os.path.join(directory, name))
                if info.st_dev == device and (info.st_dev, info.st_ino) not in seen:
                    seen.add((info.st_dev, info.st_ino))
                    total += info.st_blocks * 512
    return total
