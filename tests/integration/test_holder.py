"""The holder process: it keeps descriptors, and nothing that a client does ends it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.waiting import until

from fastpull.fuse_client.session import holder
from fastpull.fuse_client.session.errors import KeeperError, KeeperGoneError
from fastpull.fuse_client.session.holder_keeper import HolderKeeper
from fastpull.fuse_client.session.keeper import find_keeper


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[HolderKeeper]:
    keeper = HolderKeeper.connect_or_start(tmp_path)
    yield keeper
    with contextlib.suppress(ProcessLookupError):
        os.kill(keeper.pid, signal.SIGKILL)
    keeper.close()


@pytest.fixture
def stranger(tmp_path: Path, keeper: HolderKeeper) -> Iterator[socket.socket]:
    """A second connection that speaks whatever it likes."""
    with connection(tmp_path) as sock:
        yield sock


def connection(run_dir: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.connect(str(run_dir / holder.SOCKET_NAME))
    sock.settimeout(60)
    return sock


def serves(run_dir: Path) -> bool:
    """Whether a holder is there that answers."""
    keeper = HolderKeeper.connect(run_dir)
    if keeper is not None:
        keeper.close()
    return keeper is not None


def is_open(pid: int, what: str) -> bool:
    return any(what in os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir())


def test_a_descriptor_outlives_the_daemon_that_left_it(keeper: HolderKeeper, tmp_path: Path) -> None:
    """The next one gets a copy of the very same open file."""
    with (tmp_path / "file").open("w+b") as file:
        file.write(b"hello")
        file.flush()
        keeper.put("some-name", file.fileno())
    keeper.close()

    again = HolderKeeper.connect(tmp_path)
    assert again is not None
    fd = again.take("some-name")
    assert fd is not None
    assert (os.pread(fd, 10, 0), os.lseek(fd, 0, os.SEEK_CUR)) == (b"hello", 5)
    assert not os.get_inheritable(fd)
    os.close(fd)
    again.close()


def test_what_is_not_there_is_none(keeper: HolderKeeper) -> None:
    """Never put, dropped, or dropped twice."""
    assert keeper.take("nothing") is None
    with open(os.devnull) as file:
        keeper.put("null", file.fileno())
    keeper.drop("null")
    keeper.drop("null")

    assert keeper.take("null") is None
    assert not is_open(keeper.pid, "not-null")


def test_a_descriptor_whose_other_side_is_gone_is_dropped(keeper: HolderKeeper) -> None:
    """As an unmounted FUSE is: nobody should go on with it."""
    ours, theirs = socket.socketpair()
    keeper.put("pair", ours.fileno())
    ours.close()
    fd = keeper.take("pair")
    assert fd is not None
    os.close(fd)

    theirs.close()

    assert keeper.take("pair") is None


def test_putting_again_replaces(keeper: HolderKeeper, tmp_path: Path) -> None:
    """The old copy is closed."""
    for name in ("old", "new"):
        with (tmp_path / name).open("wb") as file:
            keeper.put("file", file.fileno())

    assert not is_open(keeper.pid, f"{tmp_path}/old")
    assert is_open(keeper.pid, f"{tmp_path}/new")


@pytest.mark.parametrize(
    "packet",
    [
        b"put",
        b"put ",
        b"put UPPER",
        b"put " + b"x" * 65,
        b"put none-came-along",
        b"take ../../etc",
        b"fly away",
        b"hello there",
        b"stop it",
        b"\xff\xfe\x00",
        b"x" * 10_000,
    ],
)
def test_nonsense_is_answered_with_an_error(stranger: socket.socket, keeper: HolderKeeper, packet: bytes) -> None:
    """And the holder goes on for everybody else."""
    stranger.send(packet)

    assert stranger.recv(4096).startswith(b"error ")
    assert keeper.take("nothing") is None


@pytest.mark.parametrize("text", [b"put too-many", b"nonsense", b"take nothing", b"stop it", b""])
def test_descriptors_that_are_not_kept_are_closed(
    stranger: socket.socket, keeper: HolderKeeper, tmp_path: Path, text: bytes
) -> None:
    """No client can fill the holder's table with them."""
    with (tmp_path / "file").open("wb") as file:
        socket.send_fds(stranger, [text], [file.fileno()] * 3)
        stranger.recv(4096)

    assert keeper.take("nothing") is None
    assert not is_open(keeper.pid, str(tmp_path / "file"))


@pytest.mark.fault(
    "holder: strangers on its socket",
    done="connections that say nothing",
    promised="the daemon is served all the same",
)
def test_silent_clients_keep_nobody_waiting(keeper: HolderKeeper, tmp_path: Path) -> None:
    """Nor do clients that never take their answers, or too many of them at once."""
    with contextlib.ExitStack() as crowd:
        for _ in range(50):
            sock = crowd.enter_context(connection(tmp_path))
            sock.setblocking(False)
            with contextlib.suppress(OSError):  # its buffer is full, or the holder has had enough
                for _ in range(1000):
                    sock.send(b"hello")

        assert keeper.take("nothing") is None
    until(lambda: serves(tmp_path), "a new client is served")


def test_the_number_of_kept_descriptors_has_a_bound(keeper: HolderKeeper) -> None:
    """More than any daemon needs; the ones that are there stay."""
    with open(os.devnull) as file:
        for i in range(64):
            keeper.put(f"fd{i}", file.fileno())
        with pytest.raises(KeeperError, match="too many"):
            keeper.put("one-more", file.fileno())

    fd = keeper.take("fd0")
    assert fd is not None
    os.close(fd)


def test_the_socket_is_private(keeper: HolderKeeper, tmp_path: Path) -> None:
    """Whoever has the descriptor of the mount can answer every read of every container."""
    mode = (tmp_path / holder.SOCKET_NAME).stat().st_mode

    assert stat.S_IMODE(mode) == 0o600


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_another_user_is_not_served(keeper: HolderKeeper, tmp_path: Path) -> None:
    """Even one who can reach the socket."""
    for path in (tmp_path, *tmp_path.parents[:2]):
        path.chmod(0o755)
    (tmp_path / holder.SOCKET_NAME).chmod(0o666)
    script = (
        "import os, socket, sys\nos.setuid(65534)\n"
        "s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.settimeout(60); s.connect(sys.argv[1])\n"
        "try: s.send(b'hello'); print('served' if s.recv(100) else 'turned away')\n"
        "except OSError: print('turned away')"
    )
    command = [sys.executable, "-I", "-S", "-c", script, str(tmp_path / holder.SOCKET_NAME)]

    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)

    assert done.stdout == "turned away\n", done.stderr
    assert keeper.take("nothing") is None


def test_one_holder_per_directory(keeper: HolderKeeper, tmp_path: Path) -> None:
    """A second one says so and ends; who asks for one gets the first."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "fastpull.fuse_client.session.holder", str(tmp_path)],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    again = HolderKeeper.connect_or_start(tmp_path)

    assert (done.returncode, again.pid) == (1, keeper.pid)
    assert "a holder listens there already" in done.stderr
    again.close()


def test_a_socket_without_a_holder_is_replaced(keeper: HolderKeeper, tmp_path: Path) -> None:
    """What a killed holder leaves behind."""
    os.kill(keeper.pid, signal.SIGKILL)
    until(lambda: not serves(tmp_path), "the holder is dead", ignore=(KeeperError,))

    again = HolderKeeper.connect_or_start(tmp_path)

    assert again.pid != keeper.pid
    again.stop()
    again.close()


@pytest.mark.fault(
    "holder: killed",
    done="kill -9 of the process that keeps the FUSE descriptor",
    promised="the daemon notices at once",
)
async def test_the_death_of_the_holder_is_noticed(keeper: HolderKeeper) -> None:
    """By who waits for it, and by who asks it something."""
    lost = asyncio.get_running_loop().create_task(keeper.lost())
    await asyncio.sleep(0)
    keeper.take("nothing")  # an answer is no death
    await asyncio.sleep(0.05)
    assert not lost.done()

    os.kill(keeper.pid, signal.SIGKILL)

    async with asyncio.timeout(60):
        await lost
    with pytest.raises(KeeperGoneError):
        keeper.take("nothing")


def test_stop_ends_it_and_leaves_nothing(keeper: HolderKeeper, tmp_path: Path) -> None:
    """Nor does a second stop do anything but say so."""
    keeper.stop()

    until(lambda: not (tmp_path / holder.SOCKET_NAME).exists(), "the socket is gone")
    with pytest.raises(KeeperGoneError):
        keeper.stop()


def test_it_stands_apart_from_the_daemon_and_stays_small(keeper: HolderKeeper) -> None:
    """Ctrl-C in the daemon's terminal does not reach it, and it costs nearly nothing."""
    status = Path(f"/proc/{keeper.pid}/status").read_text()
    resident_kib = int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])

    assert os.getsid(keeper.pid) not in (0, os.getsid(0))
    assert os.readlink(f"/proc/{keeper.pid}/fd/1") == os.devnull
    assert resident_kib < 16 * 1024


class TestSystemd:
    """systemd's descriptor store as the keeper, with systemd's end of the socket played by the test."""

    def test_it_is_used_where_it_is_offered(self, tmp_path: Path) -> None:
        """systemd 254 says so with $FDSTORE; a holder that runs already goes first."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
            systemd.bind(str(tmp_path / "notify"))
            environ = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "FDSTORE": "8"}
            keeper = find_keeper(tmp_path, environ)
            assert keeper.description == "systemd's descriptor store"
            assert keeper.take("file") is None

            with (tmp_path / "file").open("wb") as file:
                keeper.put("file", file.fileno())

            assert systemd.recv(4096) == b"FDSTOREREMOVE=1\nFDNAME=file"
            text, fds, _, _ = socket.recv_fds(systemd, 4096, 4)
            assert text == b"FDSTORE=1\nFDNAME=file\nFDPOLL=0"
            assert os.readlink(f"/proc/self/fd/{fds[0]}") == str(tmp_path / "file")
            os.close(fds[0])

            running = HolderKeeper.connect_or_start(tmp_path)
            found = find_keeper(tmp_path, environ)
            assert found.description == running.description
            found.close()
            running.stop()
            running.close()

    @pytest.mark.fault(
        "holder: systemd's descriptor store instead",
        done="a new daemon, with what the store gives it",
        promised="it finds its descriptor by name",
    )
    def test_what_it_kept_comes_back_by_name(self, tmp_path: Path) -> None:
        """Descriptors 3, 4, ... in the order of $LISTEN_FDNAMES."""
        script = (
            "import os\n"
            "from fastpull.fuse_client.session.systemd_keeper import SystemdKeeper\n"
            "environ = {**os.environ, 'LISTEN_PID': str(os.getpid())}\n"
            "keeper = SystemdKeeper.from_environment(environ, pid=os.getpid())\n"
            "print(os.readlink(f'/proc/self/fd/{keeper.take(\"mine\")}'), keeper.take('nobody'))\n"
        )
        (tmp_path / "file").touch()
        shell = 'exec 3</dev/null 4<"$2"; exec "$0" -P -c "$1"'
        done = subprocess.run(
            ["/bin/sh", "-c", shell, sys.executable, script, str(tmp_path / "file")],
            env={**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify"), "LISTEN_FDNAMES": "other:mine"},
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )

        assert done.stdout.split() == [str(tmp_path / "file"), "None"], done.stderr

    def test_it_is_not_used_elsewhere(self, tmp_path: Path) -> None:
        """A unit with Type=notify and no store, or variables that were meant for another process."""
        for environ in (
            {},
            {"NOTIFY_SOCKET": "/run/systemd/notify", "FDSTORE": "0"},
            {"NOTIFY_SOCKET": "/run/systemd/notify", "LISTEN_PID": "1", "LISTEN_FDNAMES": "fuse-devices"},
        ):
            keeper = find_keeper(tmp_path, environ)
            assert isinstance(keeper, HolderKeeper)
            keeper.stop()
            keeper.close()
