"""A node with ``driver = "fuse"``: pyfuse3, its processes and the daemon are real; only the proxy is a fake."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.fault_rows import Seen
from harness.lab import drop_page_cache, short_directory
from harness.mounts import mount_points_below
from harness.node import Node
from harness.portable import children_below
from harness.processes import run
from harness.sample_image import SampleImage, sums
from harness.waiting import until

from fastpull.cache.digest import chunk_id
from fastpull.fuse_client.cli.connection import DaemonConnection

pytest.importorskip("pyfuse3")

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]

BIG = 6 << 20


@pytest.fixture
def image() -> Iterator[SampleImage]:
    image = SampleImage(small_files=60, big_bytes=BIG)
    with image.proxy.in_thread():
        yield image


@pytest.fixture
def root() -> Iterator[Path]:
    with short_directory() as path:
        yield path


@pytest.fixture
def node(image: SampleImage, root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    monkeypatch.setenv("FASTPULL_NODE__DRIVER", "fuse")
    settings = "[trace]\nsettle_seconds = 0.5\n[fetch]\nretry_seconds = 60.0\n"
    with Node(root / "n", [image.proxy.url], extra_settings=settings) as node:
        yield node
        print(node.process.log_tail())  # for who looks into a failure


def mount(node: Node, root: Path, image: str = "demo:1", name: str = "mnt") -> Path:
    node.command("mount", image, root / name)
    return root / name


def test_a_mounted_image_reads_as_it_was_built(image: SampleImage, node: Node, root: Path) -> None:
    """Every byte, no chunk fetched twice; what is local needs no daemon. In the end nothing is left."""
    path = mount(node, root)
    assert sums(path) == image.sums()
    assert os.readlink(path / "usr") == "lib"
    assert set(image.proxy.asked.values()) == {1}, "no chunk is fetched twice"
    status = node.status()
    (chain,) = status["chains"]
    assert (status["driver"], status["driver_reason"]) == ("fuse", 'driver = "fuse"')
    assert status["portable"] == {"processes": 1, "deaths": 0}
    assert chain["local_chunks"] == chain["chunks"] == len(image.proxy.asked)
    assert "driver:      fuse" in node.command("status")
    (child,) = children_below(node.root)
    for fd in (Path("/proc") / str(child) / "fd").iterdir():
        assert "snapshotter" not in os.readlink(fd), "nothing of the daemon's lives on in it"

    drop_page_cache()
    before = len(image.proxy.requests)
    node.kill()
    assert sums(path) == image.sums(), "without a daemon"
    node.start()
    assert children_below(node.root) == [child], "it has outlived the daemon"
    until(lambda: node.status()["portable"]["processes"] == 1, "the new daemon knows it")
    assert len(image.proxy.requests) == before

    node.command("umount", path)
    assert mount_points_below(path) == []
    until(lambda: not children_below(node.root), "its process has ended")
    assert node.status()["chains"] == []
    assert list((node.run_dir / "portable").iterdir()) == []


def test_a_start_is_traced_whoever_answers(image: SampleImage, node: Node, root: Path) -> None:
    """Also what the process reads out of the store by itself, and what was read before the start; in order."""
    path = mount(node, root)
    assert sums(path) == image.sums()
    assert image.proxy.traces == [], "it was a look, no start"

    node.command("mount", "--start", "demo:1", root / "start")
    drop_page_cache()
    wanted = [b"lib/m010.py", b"big", b"lib/m050.py"]
    for name in wanted:
        run("cat", root / "start" / os.fsdecode(name))
    until(lambda: image.proxy.traces, "the trace arrives")
    first, big, last = (image.files[name] for name in wanted)
    chunks = image.proxy.traces[0].chunks
    ids = [chunk_id(data).hex() for data in (first, big[:40_000], last)]
    assert [chunks.index(name) for name in ids] == sorted(chunks.index(name) for name in ids)
    assert len(chunks) >= BIG // 40_000


@pytest.mark.fault(
    "portable driver: daemon killed during a cold read",
    done="2 times kill -9",
    promised="the right sum",
)
def test_a_reader_survives_the_daemon(image: SampleImage, node: Node, root: Path, seen: Seen) -> None:
    """kill -9 in the middle of a read of what is not here: the right bytes, later."""
    path = mount(node, root)
    proxy = image.proxy
    proxy.budget = 20
    reader = subprocess.Popen(["sha256sum", path / "big"], stdout=subprocess.PIPE, text=True)
    try:
        for round_ in range(2):
            until(lambda: proxy.sent >= proxy.budget, "the reader makes progress")
            node.kill()
            assert reader.poll() is None, f"round {round_}: the reader waits"
            proxy.budget = proxy.sent + 20
            node.start()
        proxy.budget = math.inf
        out, _ = reader.communicate(timeout=200)
    finally:
        reader.kill()
        reader.wait()
    assert (reader.returncode, out.split()[0]) == (0, hashlib.sha256(image.files[b"big"]).hexdigest())
    node.command("umount", path)
    seen("2 kills, the right sum")


@pytest.mark.fault(
    "portable driver: the process of a mount killed",
    done="kill -9",
    promised="**not survived** (pyfuse3 has no take-over): an error at once; the next user gets a new mount",
)
def test_a_process_that_dies_is_replaced(image: SampleImage, node: Node, root: Path) -> None:
    """Its users get an error at once; the daemon says so, cleans up, and the next user has a mount that works."""
    path = mount(node, root)
    other = mount(node, root, "other:1", "other")
    assert (other / "hello").read_bytes() == b"other\n"
    file = os.open(path / "lib" / "m001.py", os.O_RDONLY)
    (victim,) = [pid for pid in children_below(node.root) if image.chain.hex.encode() in cmdline(pid)]
    os.kill(victim, signal.SIGKILL)
    until(lambda: node.status()["portable"]["deaths"] == 1, "the daemon has noticed")
    with pytest.raises(OSError) as caught:
        os.pread(file, 10, 0)
    assert caught.value.errno in (errno.ENOTCONN, errno.ECONNABORTED, errno.EIO)
    with contextlib.suppress(OSError):  # closing asks the dead process too
        os.close(file)
    assert (other / "hello").read_bytes() == b"other\n", "the others go on"

    again = mount(node, root, name="again")
    assert sums(again) == image.sums()
    metrics = DaemonConnection(node.run_dir)._send("GET", "/metrics", None).decode()
    assert "fastpull_node_portable_deaths_total 1.0" in metrics
    assert 'fastpull_node_driver{driver="fuse"' in metrics
    assert "has died" in node.process.log_tail()
    run("umount", path)
    node.command("umount", path, seconds=60)
    node.command("umount", again)
    node.command("umount", other)
    until(lambda: not children_below(node.root), "all have ended")
    assert mount_points_below(node.data) == []


@pytest.mark.fault(
    "portable driver: readers killed",
    done="96 readers killed while they wait",
    promised="the process goes on and loses no worker",
)
def test_readers_that_are_killed_leave_no_trace(image: SampleImage, node: Node, root: Path) -> None:
    """A request that its caller takes back, at whatever moment, neither stops the process nor wears it out."""
    path = mount(node, root)
    (child,) = children_below(node.root)
    image.proxy.budget = 0  # so that they wait
    for _ in range(8):
        readers = [
            subprocess.Popen(["find", path, "-type", "f", "-exec", "cat", "{}", ";"], stdout=subprocess.DEVNULL)
            for _ in range(12)
        ]
        for reader in readers:
            reader.kill()
        for reader in readers:
            reader.wait()
    image.proxy.budget = math.inf
    assert sums(path) == image.sums()
    assert children_below(node.root) == [child]
    fuse = [fd for fd in (Path("/proc") / str(child) / "fd").iterdir() if os.readlink(fd) == "/dev/fuse"]
    flags = (Path("/proc") / str(child) / "fdinfo" / fuse[0].name).read_text().split("flags:\t")[1].split()[0]
    assert not int(flags, 8) & os.O_NONBLOCK, "pyfuse3 ends a worker for each EAGAIN"
    node.command("umount", path)


def cmdline(pid: int) -> bytes:
    try:
        return (Path("/proc") / str(pid) / "cmdline").read_bytes()
    except OSError:
        return b""


@pytest.mark.fault(
    "portable driver: bytes that can not be had",
    done="a proxy that lacks them",
    promised="an error of that read alone",
)
def test_bytes_that_can_not_be_had_are_an_error_of_that_read(
    image: SampleImage, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EIO after the time that the settings give, and no other read waits for it; later the same read works."""
    monkeypatch.setenv("FASTPULL_NODE__DRIVER", "fuse")
    with Node(root / "n", [image.proxy.url], extra_settings="[fetch]\nretry_seconds = 1.0\n") as node:
        path = mount(node, root)
        local = (path / "lib" / "m002.py").read_bytes()
        image.proxy.budget = 0
        with pytest.raises(OSError) as caught:
            (path / "big").read_bytes()
        assert caught.value.errno == errno.EIO
        assert local == image.files[b"lib/m002.py"]
        drop_page_cache()
        assert (path / "lib" / "m002.py").read_bytes() == local
        image.proxy.budget = math.inf
        until(lambda: hashlib.sha256((path / "big").read_bytes()).digest(), "it can be read", ignore=(OSError,))
        assert sums(path) == image.sums()
        node.command("umount", path)


def test_drivers_may_change_under_what_is_mounted(
    image: SampleImage, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What EROFS has mounted goes on when the settings say "fuse", and the other way round; stop ends both."""
    monkeypatch.setenv("FASTPULL_NODE__DRIVER", "auto")
    with Node(root / "n", [image.proxy.url]) as node:
        path = mount(node, root)
        assert node.status()["driver"] == "erofs"
        assert children_below(node.root) == []
        node.process.stop(group=False)
        with pytest.MonkeyPatch.context() as environment:
            environment.setitem(node.process._env, "FASTPULL_NODE__DRIVER", "fuse")
            node.start()
            other = mount(node, root, "other:1", "other")
            assert len(children_below(node.root)) == 1
            assert sums(path) == image.sums()
            node.process.stop(group=False)
        node.start()
        assert node.status()["driver"] == "erofs"
        drop_page_cache()
        assert (other / "hello").read_bytes() == b"other\n"
        assert sums(path) == image.sums()
        run("umount", path)
        run("umount", other)
        node.command("stop")
        assert mount_points_below(node.data) == []
        until(lambda: not children_below(node.root), "stop ends the processes too")


def test_the_doctor_sees_what_is_there(image: SampleImage, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a daemon and a proxy it has little to say; without, it says what to do, and exits with 1."""
    monkeypatch.setenv("FASTPULL_NODE__DRIVER", "fuse")
    with Node(root / "n", [image.proxy.url]) as node:
        here = {row["check"] for row in doctor(node) if row["verdict"] == "ok"}
        assert {"user", "kernel", "/dev/fuse", "driver", "daemon", "snapshotter", "clock"} <= here
        node.process.stop(group=False)
        failed = {row["check"]: row["remedy"] for row in doctor(node) if row["verdict"] == "fail"}
        assert "fastpull-node serve" in failed["daemon"]
        assert "proxy" in failed, "the fake one has no /readyz"


def doctor(node: Node) -> list[dict[str, str]]:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "fastpull.fuse_client", "doctor", "--json", "--config", node.config],
        capture_output=True,
        check=False,
        timeout=120,
    )
    rows: list[dict[str, str]] = json.loads(done.stdout)
    assert done.returncode == any(row["verdict"] == "fail" for row in rows), done.stderr
    return rows
