"""The kernel's EROFS over a bootstrap and a device that a session serves."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest
from fakes.devices import MemoryDevice, RemoteDevice, pattern
from harness.sessions import SessionDaemon, clear, session_directory
from harness.waiting import until

from fastpull.fuse_client.drivers import mounting
from fastpull.fuse_client.drivers.erofs import ErofsDriver
from fastpull.fuse_client.drivers.errors import DriverError, MountError
from fastpull.fuse_client.drivers.mounts import is_mounted, mounts_at
from fastpull.fuse_client.drivers.probe import KernelFeatures, probe, tiny_bootstrap
from fastpull.fuse_client.session.answers import agree
from fastpull.fuse_client.session.channel import Connection
from fastpull.fuse_client.session.fuse_mount import mount_fuse, read_init
from fastpull.fuse_client.session.journal import RequestJournal
from fastpull.fuse_client.session.server import FuseSession

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]


class Image(NamedTuple):
    """A tree, its bootstrap, and the data that its files lie in."""

    tree: Path
    bootstrap: Path
    data: Path


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    path = tmp_path_factory.mktemp("image")
    image = Image(path / "tree", path / "bootstrap", path / "data")
    (image.tree / "sub").mkdir(parents=True)
    (image.tree / "big").write_bytes(pattern(9 * 2**20 + 333))
    (image.tree / "empty").touch()
    for i in range(40):
        (image.tree / f"sub/small{i}").write_bytes(pattern(i * 997, str(i)))
    subprocess.run(
        ["mkfs.erofs", "--quiet", "--chunksize=1048576", f"--blobdev={image.data}", image.bootstrap, image.tree],
        check=True,
        timeout=60,
        stdout=subprocess.DEVNULL,
    )
    return image


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> KernelFeatures:
    return asyncio.run(probe(tmp_path_factory.mktemp("probe")))


@pytest.fixture(params=["files", "loop"])
def driver(request: pytest.FixtureRequest, features: KernelFeatures) -> ErofsDriver:
    """Both ways to mount, as far as this kernel can."""
    if request.param == "files":
        if not features.erofs_file_backed:
            pytest.skip("this kernel mounts EROFS from block devices only (Linux 6.12 can)")
        return ErofsDriver(features)
    if not Path("/dev/loop-control").exists():
        pytest.skip("no loop devices here")
    return ErofsDriver(msgspec.structs.replace(features, erofs_file_backed=False, erofs_loop=True))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """Holds ``devices`` and ``target``; everything there is unmounted at the end."""
    for name in ("devices", "target"):
        (tmp_path / name).mkdir()
    try:
        yield tmp_path
    finally:
        clear(tmp_path)


@pytest.fixture
async def session(place: Path) -> AsyncIterator[FuseSession]:
    fd = mount_fuse(place / "devices")
    os.write(fd, agree(read_init(fd))[1])
    session = FuseSession(Connection(fd, RequestJournal.create()))
    session.start()
    yield session
    await session.aclose(hand_over=False)


async def same(first: Path, second: Path) -> bool:
    """Compared by another process, because ours would wait for itself."""
    command = ["diff", "-r", str(first), str(second)]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=120)
    return done.returncode == 0 or pytest.fail(done.stdout + done.stderr)


@pytest.mark.parametrize("device", [MemoryDevice, RemoteDevice])
async def test_files_have_their_content(
    session: FuseSession,
    driver: ErofsDriver,
    place: Path,
    image: Image,
    device: type[MemoryDevice | RemoteDevice],
) -> None:
    """Every byte of every file comes through the session."""
    session.add("blob", device(image.data.read_bytes()))

    await driver.mount(image.bootstrap, place / "devices/blob", place / "target")

    assert [mount.path for mount in driver.mounted(place)] == [place / "target"]
    assert await same(image.tree, place / "target")
    assert session.stats.reads > 0
    await driver.unmount(place / "target")
    assert not is_mounted(place / "target")
    await driver.unmount(place / "target")  # nothing there is fine


async def test_any_user_may_read_what_the_mode_allows(
    session: FuseSession, driver: ErofsDriver, place: Path, image: Image
) -> None:
    """The device itself is private, but files of the image are not: containers run as anybody."""
    session.add("blob", MemoryDevice(image.data.read_bytes()))
    await driver.mount(image.bootstrap, place / "devices/blob", place / "target")
    for path in (place, *place.parents[:2]):
        path.chmod(0o755)
    script = "import os, sys, hashlib; os.setgid(65534); os.setuid(65534); "
    script += "print(hashlib.sha256(open(sys.argv[1], 'rb').read()).hexdigest())"

    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-I", "-S", "-c", script, place / "target/big"],
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.stdout.strip() == hashlib.sha256((image.tree / "big").read_bytes()).hexdigest(), done.stderr


async def test_a_lost_range_costs_only_the_reads_of_it(
    session: FuseSession, driver: ErofsDriver, place: Path, image: Image
) -> None:
    """EIO for one file; the others are right; and once it can be had again, it is."""
    data = image.data.read_bytes()
    at = data.index(pattern(30 * 997, "30")[:4096])
    session.add("blob", RemoteDevice(data, broken=[range(at, at + 1)]))
    await driver.mount(image.bootstrap, place / "devices/blob", place / "target")

    def read(name: str) -> tuple[int, bytes]:
        done = subprocess.run(["cat", place / "target" / name], capture_output=True, timeout=60, check=False)
        return done.returncode, done.stdout

    assert (await asyncio.to_thread(read, "sub/small30"))[0] == 1
    assert await asyncio.to_thread(read, "sub/small10") == (0, pattern(10 * 997, "10"))

    session.add("blob", RemoteDevice(data))

    assert await asyncio.to_thread(read, "sub/small30") == (0, pattern(30 * 997, "30"))


async def test_a_device_that_is_not_served_is_said(
    session: FuseSession, driver: ErofsDriver, place: Path, image: Image
) -> None:
    """ENOENT, nothing mounted, nothing attached, and the session goes on."""
    with pytest.raises(MountError) as caught:
        await driver.mount(image.bootstrap, place / "devices/blob", place / "target")

    assert caught.value.code == errno.ENOENT
    assert not is_mounted(place / "target")


async def test_a_bootstrap_that_is_none_is_refused(
    session: FuseSession, driver: ErofsDriver, place: Path, image: Image
) -> None:
    """The kernel's errno comes through."""
    session.add("blob", MemoryDevice(image.data.read_bytes()))
    (place / "bootstrap").write_bytes(bytes(8192))

    with pytest.raises(MountError) as caught:
        await driver.mount(place / "bootstrap", place / "devices/blob", place / "target")

    assert caught.value.code == errno.EINVAL
    assert not is_mounted(place / "target")


async def test_a_path_with_a_comma_is_refused(driver: ErofsDriver, place: Path, image: Image) -> None:
    """It would end the mount option and begin another."""
    with pytest.raises(MountError, match="comma"):
        await driver.mount(image.bootstrap, place / "dev,ro", place / "target")


async def test_busy_mounts_go_only_lazily(session: FuseSession, driver: ErofsDriver, place: Path, image: Image) -> None:
    """EBUSY while a file is open; a lazy unmount lets its user finish."""
    session.add("blob", MemoryDevice(image.data.read_bytes()))
    await driver.mount(image.bootstrap, place / "devices/blob", place / "target")
    with (place / "target/empty").open("rb"):
        with pytest.raises(MountError) as caught:
            await driver.unmount(place / "target")
        assert caught.value.code == errno.EBUSY

        await driver.unmount(place / "target", lazy=True)

    assert not is_mounted(place / "target")


async def test_mounts_on_top_of_each_other_all_go(
    session: FuseSession, driver: ErofsDriver, place: Path, image: Image
) -> None:
    """A daemon that died between mounting and writing it down may have mounted twice."""
    session.add("blob", MemoryDevice(image.data.read_bytes()))
    for _ in range(2):
        await driver.mount(image.bootstrap, place / "devices/blob", place / "target")
    assert len(mounts_at(place / "target")) == 2

    await driver.unmount(place / "target")

    assert not is_mounted(place / "target")


_SUM = """
import hashlib, os, sys
while not os.path.exists(sys.argv[2]):
    sum = hashlib.md5(usedforsecurity=False)
    fd = os.open(sys.argv[1], os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    while data := os.read(fd, 65536):
        sum.update(data)
        print('.', end='', flush=True)
    os.close(fd)
    print(sum.hexdigest(), flush=True)
"""


def start_summing(path: Path, place: Path) -> tuple[subprocess.Popen[bytes], Path]:
    """A process that sums ``path`` again and again, never from the page cache, until ``place/enough`` exists.

    Its output: a dot for each read, a line for each sum.
    """
    with (place / "out").open("wb") as out:
        command = [sys.executable, "-I", "-S", "-c", _SUM, path, place / "enough"]
        return subprocess.Popen(command, stdout=out), place / "out"


def test_a_checksum_survives_five_daemons(tmp_path: Path, image: Image, features: KernelFeatures) -> None:
    """kill -9 of the daemon, five times during one md5sum through EROFS: the right sum, and no error."""
    with session_directory(tmp_path) as run_dir:
        target = tmp_path / "target"
        target.mkdir()
        daemon = SessionDaemon(run_dir, "remote", {"blob": image.data})
        try:
            daemon.serve()
            driver = ErofsDriver(features)
            asyncio.run(driver.mount(image.bootstrap, run_dir / "devices/blob", target))
            reader, out = start_summing(target / "big", tmp_path)
            for _ in range(5):
                before = out.stat().st_size
                until(lambda before=before: out.stat().st_size > before, "the reader goes on")  # type: ignore[misc]
                daemon.kill()
                assert "resumed=True" in daemon.serve()
            (tmp_path / "enough").touch()

            assert reader.wait(120) == 0
            sums = out.read_text().replace(".", "").split()
            assert set(sums) == {hashlib.md5((image.tree / "big").read_bytes(), usedforsecurity=False).hexdigest()}
        finally:
            daemon.stop(group=False)
            clear(tmp_path)


async def test_a_dead_session_does_not_keep_mounts(
    place: Path, driver: ErofsDriver, image: Image, tmp_path: Path
) -> None:
    """With the daemon gone for good: aborting FUSE lets readers go, and everything can be unmounted."""
    with session_directory(place) as run_dir:
        daemon = SessionDaemon(run_dir, "stuck", {"blob": image.data})
        try:
            daemon.serve()
            await driver.mount(image.bootstrap, run_dir / "devices/blob", place / "target")
            reader = subprocess.Popen(
                ["cat", place / "target/big"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            daemon.kill()

            clear(run_dir)
            await driver.unmount(place / "target", lazy=True)

            assert await asyncio.to_thread(reader.wait, 60) == 1
            assert not is_mounted(place / "target")
        finally:
            daemon.stop(group=False)


class TestProbe:
    """What the kernel can is found out by doing it."""

    async def test_it_leaves_nothing_behind(self, tmp_path: Path, features: KernelFeatures) -> None:
        """And says the same each time."""
        assert await probe(tmp_path / "scratch") == features
        assert list((tmp_path / "scratch").iterdir()) == []
        assert features.release == os.uname().release

    async def test_a_kernel_without_it_gives_a_reason(
        self, tmp_path: Path, features: KernelFeatures, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """For the log, for status, and in the error of whoever wants the driver all the same."""

        async def refuse(bootstrap: Path, device: Path, target: Path, options: str = "") -> None:
            raise MountError("mount erofs on", target, errno.ENODEV)

        monkeypatch.setattr(mounting, "mount_erofs_file", refuse)
        monkeypatch.setattr(mounting, "mount_erofs_loop", refuse)

        found = await probe(tmp_path)

        assert not found.erofs_usable
        assert "the kernel has no EROFS" in found.erofs_problem
        with pytest.raises(DriverError, match="the kernel has no EROFS") as caught:
            ErofsDriver(found)
        assert "fuse" in caught.value.remedy

    async def test_a_directory_that_can_not_be_used_is_a_reason_too(self, tmp_path: Path) -> None:
        """The probe never raises: doctor shows what it found."""
        (tmp_path / "file").touch()

        found = await probe(tmp_path / "file/scratch")

        assert not found.erofs_usable
        assert "file" in found.erofs_problem

    def test_its_image_is_a_sound_one(self, tmp_path: Path) -> None:
        """fsck.erofs of erofs-utils has nothing against it."""
        (tmp_path / "tiny").write_bytes(tiny_bootstrap())
        (tmp_path / "device").write_bytes(bytes(4096))
        done = subprocess.run(
            ["fsck.erofs", f"--device={tmp_path / 'device'}", tmp_path / "tiny"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

        assert done.returncode == 0, done.stdout + done.stderr
