"""Daemons come and go, by kill -9 too; who reads notices nothing but a pause."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.devices import pattern
from harness.fault_rows import Seen
from harness.sessions import SessionDaemon, clear, finish_reader, session_directory, start_reader
from harness.waiting import until

from fastpull.fuse_client.drivers.mounts import is_mounted
from fastpull.fuse_client.session.errors import SessionLockedError
from fastpull.fuse_client.session.holder_keeper import HolderKeeper
from fastpull.fuse_client.session.keeper import find_keeper
from fastpull.fuse_client.session.takeover import DevicesMount

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

SIZE = 2**20
DATA = pattern(SIZE)


def expected(offset: int, size: int) -> tuple[int, str]:
    return size, hashlib.sha256(DATA[offset : offset + size]).hexdigest()


@pytest.fixture
def run_dir(tmp_path: Path) -> Iterator[Path]:
    with session_directory(tmp_path) as path:
        yield path


@pytest.fixture
def blob(tmp_path: Path) -> Path:
    path = tmp_path / "blob"
    path.write_bytes(DATA)
    return path


@pytest.fixture(params=["resend", "journal"])
def recovery(request: pytest.FixtureRequest) -> str:
    """How open requests come back: from the kernel (Linux 6.9), or out of our journal."""
    return str(request.param)


@pytest.fixture
def daemons(run_dir: Path, blob: Path, recovery: str) -> Iterator[dict[str, SessionDaemon]]:
    """One daemon of each temper, not started."""
    daemons = {
        mode: SessionDaemon(run_dir, mode, {"blob": blob}, recovery=recovery) for mode in ("local", "remote", "stuck")
    }
    yield daemons
    for daemon in daemons.values():
        daemon.stop(group=False)


def waits(reader: subprocess.Popen[str], *, in_: str = "vfs_read") -> bool:
    """Whether the reader sits in the kernel, waiting for an answer; by default to a READ."""
    if reader.poll() is not None:
        return False
    stack = Path(f"/proc/{reader.pid}/stack").read_text()
    return "fuse_" in stack and in_ in stack


@pytest.mark.fault(
    "node daemon: ended while a read is open",
    done="kill -9 or stop; take-over with FUSE_NOTIFY_RESEND (Linux 6.9), and without (older)",
    promised="the read is answered with the right bytes, and so is one that began meanwhile",
)
@pytest.mark.parametrize("end", ["kill", "stop"])
def test_a_read_that_a_daemon_left_open_is_answered_by_the_next(
    daemons: dict[str, SessionDaemon], run_dir: Path, end: str, seen: Seen
) -> None:
    """After kill -9 and after an orderly end alike: no error, the right bytes, whatever was asked meanwhile."""
    daemons["stuck"].serve()
    reader = start_reader(run_dir / "devices/blob", [(5, 10_000), (20_000, 10)])
    until(lambda: waits(reader), "the reader waits")

    if end == "kill":
        daemons["stuck"].kill()
    else:
        daemons["stuck"].stop(group=False)
    late = start_reader(run_dir / "devices/blob", [(77, 7)])
    until(lambda: waits(late, in_="open"), "a reader waits while there is no daemon")
    line = daemons["local"].serve()

    assert "resumed=True lost=False" in line
    assert finish_reader(reader) == [expected(5, 10_000), expected(20_000, 10)]
    assert finish_reader(late) == [expected(77, 7)]
    seen("the right bytes, both ways")


@pytest.mark.fault(
    "node daemon: killed three times under one open read",
    done="kill -9",
    promised="the read is answered by the fourth daemon",
)
def test_a_daemon_may_die_again_and_again(daemons: dict[str, SessionDaemon], run_dir: Path) -> None:
    """The same open read survives three daemons: what was sent again once can be sent again twice."""
    daemons["stuck"].serve()
    reader = start_reader(run_dir / "devices/blob", [(0, SIZE)])
    until(lambda: waits(reader), "the reader waits")
    for _ in range(2):
        daemons["stuck"].kill()
        daemons["stuck"].serve()

    daemons["stuck"].kill()
    daemons["remote"].serve()

    assert finish_reader(reader) == [expected(0, SIZE)]


_READ_ON = """
import os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
expected, errors = os.pread(fd, 1 << 20, 0), 0
while not os.path.exists(sys.argv[2]):
    for offset in range(0, 1 << 20, 99_000):
        try:
            if os.pread(fd, 400_000, offset) != expected[offset : offset + 400_000]:
                sys.exit("wrong bytes")
        except OSError:
            errors += 1
    print(".", end="", flush=True)
sys.exit(errors)
"""


@pytest.mark.fault(
    "node daemon: killed while it answers",
    done="10 times kill -9 under two busy readers",
    promised="no read fails, none has wrong bytes",
)
def test_a_daemon_may_die_in_the_middle_of_an_answer(
    daemons: dict[str, SessionDaemon], run_dir: Path, seen: Seen
) -> None:
    """Ten kills of a daemon that does nothing but answer: no read fails, none hangs, none gets wrong bytes.

    A kill that stops the kernel's copy half-way would end the read with EIO (``channel.py``).
    """
    daemons["local"].serve()
    stop, out = run_dir.parent / "stop", run_dir.parent / "out"
    command = [sys.executable, "-I", "-S", "-c", _READ_ON, run_dir / "devices/blob", stop]
    with out.open("wb") as file:
        readers = [subprocess.Popen(command, stdout=file) for _ in range(2)]

    for _ in range(10):
        before = out.stat().st_size
        until(lambda before=before: out.stat().st_size > before, "the readers go on", every=0.01)  # type: ignore[misc]
        daemons["local"].kill()
        daemons["local"].serve()
    stop.touch()

    assert [reader.wait(60) for reader in readers] == [0, 0]
    seen("10 kills, 0 errors, 0 wrong bytes")


@pytest.mark.parametrize("recovery", ["resend"], indirect=True)
def test_two_daemons_at_once_are_refused(daemons: dict[str, SessionDaemon], run_dir: Path) -> None:
    """The error names the one that serves; the first goes on."""
    daemons["local"].serve()

    with pytest.raises(SessionLockedError, match=f"pid {daemons['local'].pid}"):
        DevicesMount.open(run_dir, lambda path: find_keeper(path, {}), lock_seconds=0.2)

    assert finish_reader(start_reader(run_dir / "devices/blob", [(0, 10)])) == [expected(0, 10)]


@pytest.mark.fault(
    "holder: killed together with the daemon",
    done="kill -9 of both",
    promised="**not survived**: open files get an I/O error instead of hanging; the next daemon mounts anew",
)
@pytest.mark.parametrize("recovery", ["resend"], indirect=True)
def test_without_its_holder_a_mount_dies_and_a_new_one_takes_its_place(
    daemons: dict[str, SessionDaemon], run_dir: Path, seen: Seen
) -> None:
    """Holder and daemon both killed: open files fail instead of hanging, and the next daemon says what was lost."""
    daemons["stuck"].serve()
    reader = start_reader(run_dir / "devices/blob", [(0, 10)])
    until(lambda: waits(reader), "the reader waits")
    keeper = HolderKeeper.connect(run_dir)
    assert keeper is not None
    keeper.stop()
    keeper.close()
    daemons["stuck"].kill()

    assert finish_reader(reader) == [(-errno.ECONNABORTED, "")]
    line = daemons["local"].serve()

    assert "resumed=False lost=True" in line
    assert finish_reader(start_reader(run_dir / "devices/blob", [(0, 10)])) == [expected(0, 10)]
    seen("ECONNABORTED at once; the new mount reads right")


@pytest.mark.fault(
    "holder: gone while the daemon lives",
    done="the holder ends",
    promised="the daemon leaves the descriptor with a new one",
)
def test_a_lost_holder_is_replaced_while_the_daemon_lives(run_dir: Path) -> None:
    """The daemon still has the descriptor: it leaves it with a new holder, and nothing was lost."""
    mount = DevicesMount.open(run_dir, lambda path: find_keeper(path, {}))
    try:
        keeper = mount.keeper
        assert isinstance(keeper, HolderKeeper)
        keeper.stop()

        mount.keep_again(HolderKeeper.connect_or_start(run_dir))
    finally:
        mount.close()

    again = DevicesMount.open(run_dir, lambda path: find_keeper(path, {}))
    assert again.resumed
    again.unmount()
    again.close()


@pytest.mark.parametrize("recovery", ["resend"], indirect=True)
def test_an_unmount_ends_the_mount_and_lets_readers_go(daemons: dict[str, SessionDaemon], run_dir: Path) -> None:
    """Also one that waits; the keeper has nothing any more, and the next daemon begins afresh."""
    daemons["stuck"].serve()
    reader = start_reader(run_dir / "devices/blob", [(0, 10)])
    until(lambda: waits(reader), "the reader waits")
    daemons["stuck"].kill()
    mount = DevicesMount.open(run_dir, lambda path: find_keeper(path, {}))

    mount.unmount()
    mount.close()

    assert finish_reader(reader) == [(-errno.ECONNABORTED, "")]
    assert not is_mounted(run_dir / "devices")
    assert "resumed=False lost=False" in daemons["local"].serve()


@pytest.mark.fault(
    "node daemon: its FUSE mount unmounted lazily by somebody",
    done="umount -l, kill -9",
    promised="what is open goes on, the log says what does not",
)
@pytest.mark.parametrize("recovery", ["resend"], indirect=True)
def test_a_mount_that_somebody_removed_is_still_served(daemons: dict[str, SessionDaemon], run_dir: Path) -> None:
    """Files that are open go on; the log says what does not."""
    daemons["local"].serve()
    holder = os.open(run_dir / "devices", os.O_PATH)  # keeps the mount alive, as an EROFS on top of it does
    try:
        daemons["local"].kill()
        subprocess.run(["umount", "-l", run_dir / "devices"], check=True, timeout=60)

        assert "resumed=True" in daemons["local"].serve()
        assert "was unmounted while in use" in daemons["local"].log_tail()
        assert finish_reader(start_reader(Path(f"/proc/{os.getpid()}/fd/{holder}/blob"), [(0, 10)])) == [
            expected(0, 10)
        ]
    finally:
        daemons["local"].stop(group=False)
        clear(run_dir)
        os.close(holder)
