"""FUSE sessions that a test owns: a run directory, daemons to kill in it, readers, and the end of it all."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fakes import session_daemon

from fastpull.fuse_client.drivers.mounts import UnmountFlag, mounts_below, unmount
from fastpull.fuse_client.session.errors import KeeperError
from fastpull.fuse_client.session.holder_keeper import HolderKeeper
from harness.processes import OwnedProcess

_READER = """
import json, os, sys, hashlib
path, reads = sys.argv[1], json.loads(sys.argv[2])
fd = os.open(path, os.O_RDONLY)
out = []
for offset, size in reads:
    try:
        data = os.pread(fd, size, offset)
        out.append([len(data), hashlib.sha256(data).hexdigest()])
    except OSError as exc:
        out.append([-exc.errno, ""])
print(json.dumps(out))
"""


@contextmanager
def session_directory(path: Path) -> Iterator[Path]:
    """A run directory. At the end nothing is mounted in it or beside it, and its holder is gone."""
    run_dir = path / "run"
    run_dir.mkdir()
    try:
        yield run_dir
    finally:
        clear(path)
        try:
            keeper = HolderKeeper.connect(run_dir)
            if keeper is not None:
                keeper.stop()
                keeper.close()
        except KeeperError:
            pass


def clear(path: Path) -> None:
    """Unmount everything below ``path``. FUSE first and by force: then nobody waits for an answer any more."""
    found = mounts_below(path)
    for mount in sorted(found, key=lambda mount: not mount.fstype.startswith("fuse")):
        unmount(mount.path, UnmountFlag.FORCE | UnmountFlag.DETACH)


class SessionDaemon(OwnedProcess):
    """``fakes/session_daemon.py`` in a process of its own."""

    def __init__(self, run_dir: Path, mode: str, devices: dict[str, Path], *, recovery: str = "resend") -> None:
        command = [sys.executable, "-P", session_daemon.__file__, run_dir, mode, recovery]
        command += [f"{name}={path}" for name, path in devices.items()]
        # `-P` keeps the tests' folder out of the path on purpose; the daemon imports only what is installed.
        super().__init__(command, run_dir.parent / "daemon.log")
        self._seen = 0

    def serve(self) -> str:
        """Start it and return the line in which it says what it found."""
        self._seen = self.log.read_text().count("ready ") if self.log.exists() else 0
        self.start()
        self.wait_until(lambda: self.log.read_text().count("ready ") > self._seen, "the session is served")
        return [line for line in self.log.read_text().splitlines() if line.startswith("ready ")][-1]


def start_reader(path: Path, reads: Sequence[tuple[int, int]]) -> subprocess.Popen[str]:
    """A process that does ``reads`` (offset, size): a reader in the test's own process could wait for itself."""
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _READER, str(path), json.dumps(reads)], stdout=subprocess.PIPE, text=True
    )


def finish_reader(reader: subprocess.Popen[str], seconds: float = 60) -> list[tuple[int, str]]:
    """(bytes read, their sha256) or (-errno, "") of each read."""
    out, _ = reader.communicate(timeout=seconds)
    return [(count, digest) for count, digest in json.loads(out)]
