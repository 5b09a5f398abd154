"""Chains: from a name to a mounted tree, over failures and restarts. Kernel and session are replaced."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from fakes.layers import Content, directory, layers
from fakes.node_api import FakeProxy

from fastpull.cache.digest import Digest
from fastpull.cache.memory_store import MemoryChunkStore
from fastpull.cache.tasks import Tasks
from fastpull.cache.wire import ChainState
from fastpull.config.node import NodeSettings
from fastpull.fuse_client.chain_files import BOOTSTRAP, CHUNK_MAP, ChainFiles
from fastpull.fuse_client.chains import Chains
from fastpull.fuse_client.device import ChainDevice
from fastpull.fuse_client.drivers.errors import MountError
from fastpull.fuse_client.errors import (
    ChainDamagedError,
    ChainFailedError,
    ChainMountError,
    ChainNotReadyError,
    ChainUnknownError,
    ProxyUnreachableError,
)
from fastpull.fuse_client.fetch.client import ProxyClient
from fastpull.image.chunk_map import ChunkMap

UNKNOWN = Digest("ee" * 32)


class FakeKernel:
    """A driver whose mounts survive everything, as the kernel's do."""

    def __init__(self) -> None:
        self.at: dict[Path, bytes] = {}
        self.fails: list[MountError] = []
        self.lazily: list[Path] = []
        self.mounts = 0

    async def mount(self, bootstrap: Path, device: Path, target: Path) -> None:
        await asyncio.sleep(0)
        if self.fails:
            raise self.fails.pop()
        assert target.is_dir()
        self.mounts += 1
        self.at[target] = bootstrap.read_bytes()

    async def unmount(self, target: Path, *, lazy: bool = False) -> None:
        await asyncio.sleep(0)
        if self.fails:
            raise self.fails.pop()
        if self.at.pop(target, None) is not None and lazy:
            self.lazily.append(target)

    def mounted(self, root: Path) -> Sequence[Path]:
        return [path for path in self.at if path.is_relative_to(root)]

    def lost(self, target: Path, *, session_is_new: bool) -> bool:
        return session_is_new and target in self.at


class FakeSession:
    def __init__(self) -> None:
        self.devices: dict[str, ChainDevice] = {}

    def add(self, name: str, device: ChainDevice) -> int:
        self.devices[name] = device
        return 2

    def remove(self, name: str) -> None:
        del self.devices[name]


@dataclass
class FakeFollower:
    following: list[Digest] = field(default_factory=list)
    starts: int = 0

    def start(self, device: ChainDevice) -> None:
        self.starts += 1
        self.resume(device)

    def resume(self, device: ChainDevice) -> None:
        if device.chain not in self.following:
            self.following.append(device.chain)

    def stop(self, chain: Digest) -> None:
        if chain in self.following:
            self.following.remove(chain)


@dataclass
class Daemon:
    chains: Chains
    session: FakeSession
    prefetcher: FakeFollower
    tracer: FakeFollower


@dataclass
class World:
    """What outlives a daemon: the disk, the kernel, the proxy."""

    root: Path
    kernel: FakeKernel
    proxy: FakeProxy
    client: ProxyClient
    chain: Digest
    other: Digest

    @property
    def files(self) -> ChainFiles:
        return ChainFiles(self.root)

    @contextlib.asynccontextmanager
    async def daemon(self, *, session_is_new: bool = False) -> AsyncIterator[Daemon]:
        session, prefetcher, tracer, tasks = FakeSession(), FakeFollower(), FakeFollower(), Tasks()

        async def drop(_chunks: object) -> None: ...

        def open_device(chain: Digest, chunk_map: ChunkMap) -> ChainDevice:
            return ChainDevice(chain, chunk_map, MemoryChunkStore(quota_bytes=1 << 20), None, drop)  # type: ignore[arg-type]

        chains = Chains(
            self.files,
            self.client,
            (session,),  # type: ignore[arg-type]
            self.kernel,
            open_device,
            device_directory=self.root / "devices",
            prefetcher=prefetcher,
            tracer=tracer,
            tasks=tasks,
        )
        await chains.register(session_is_new=session_is_new)
        try:
            yield Daemon(chains, session, prefetcher, tracer)
            while len(tasks):
                await asyncio.sleep(0.005)
        finally:
            await tasks.aclose()


def image(proxy: FakeProxy, ref: str, number: int) -> Digest:
    content = Content()
    entries = [directory(b"etc"), content.file(b"etc/hostname", f"host{number}\n".encode() * 1000)]
    made = layers(*[[] for _ in range(number)], entries)[number:]
    return proxy.add_image(ref, made, content.chunks)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    proxy = FakeProxy()
    chain, other = image(proxy, "one", 1), image(proxy, "two", 2)
    async with proxy.serving(), ProxyClient.open(NodeSettings(proxies=(proxy.url,))) as client:
        yield World(tmp_path, FakeKernel(), proxy, client, chain, other)


async def test_a_mount_brings_the_tree_and_follows_its_start(world: World) -> None:
    """Files fetched and verified, device served, tree mounted, prefetch and trace begun."""
    async with world.daemon() as node:
        path = await node.chains.mount(world.chain)

        assert path == node.chains.path_of(world.chain)
        assert world.kernel.at[path] == world.proxy.chains[str(world.chain)][1].bootstrap
        assert list(node.session.devices) == [world.chain.hex]
        assert (node.prefetcher.following, node.tracer.following) == ([world.chain], [world.chain])
        assert node.chains.mounted() == {world.chain: path}


async def test_a_look_neither_fetches_ahead_nor_teaches(world: World) -> None:
    """Only a start is followed, once for each mount, and not with what a look had touched before."""
    async with world.daemon() as node:
        await node.chains.mount(world.chain, "dir:/x", follow=False)
        assert (node.prefetcher.following, node.tracer.following) == ([], [])
        await node.chains.mount(world.chain)
        await node.chains.mount(world.chain)
        assert (node.prefetcher.following, node.tracer.following) == ([world.chain], [world.chain])


async def test_mounting_is_done_once_for_all_who_ask(world: World) -> None:
    """Twenty containers at one moment cost one download and one mount."""
    async with world.daemon() as node:
        paths = await asyncio.gather(*(node.chains.mount(world.chain) for _ in range(20)))

    assert len(set(paths)) == 1
    assert (world.kernel.mounts, world.proxy.calls["bootstrap"], world.proxy.calls["chunkmap"]) == (1, 1, 1)


async def test_the_last_user_unmounts(world: World) -> None:
    """A chain stays as long as anybody wants it, then it leaves nothing behind."""
    async with world.daemon() as node:
        path = await node.chains.mount(world.chain)
        await node.chains.mount(world.chain, "dir:/mnt")
        await node.chains.unmount(world.chain)
        assert node.chains.users(world.chain) == ("dir:/mnt",)
        assert path in world.kernel.at

        await node.chains.unmount(world.chain, "dir:/mnt")
        await node.chains.unmount(world.chain, "dir:/mnt")

        assert (world.kernel.at, node.session.devices, node.chains.mounted()) == ({}, {}, {})
        assert (node.prefetcher.following, node.tracer.following) == ([], [])
    assert world.files.chains() == []


async def test_what_is_on_the_disk_needs_no_proxy(world: World) -> None:
    """State, restart and mount work with the proxy away."""
    async with world.daemon() as node:
        await node.chains.mount(world.chain)
        before = await node.chains.state(world.chain, 0.0)
    calls = dict(world.proxy.calls)

    async with world.daemon() as node:
        assert list(node.session.devices) == [world.chain.hex], "devices are there before anything is answered"
        await node.chains.restore()
        assert (node.prefetcher.following, node.tracer.following) == ([world.chain], []), "the start is long over"
        assert await node.chains.state(world.chain, 0.0) == before
        await node.chains.mount(world.chain)
        assert node.chains.mounted() == {world.chain: node.chains.path_of(world.chain)}

    assert (dict(world.proxy.calls), world.kernel.mounts) == (calls, 1)


async def test_after_a_reboot_everything_is_mounted_again(world: World) -> None:
    """The kernel forgot its mounts, the records did not."""
    async with world.daemon() as node:
        await node.chains.mount(world.chain)
        await node.chains.mount(world.other, "dir:/x")
    world.kernel.at.clear()

    async with world.daemon() as node:
        await node.chains.restore()
        assert set(node.chains.mounted()) == {world.chain, world.other}
    assert len(world.kernel.at) == 2


async def test_what_nobody_wants_is_tidied_up(world: World) -> None:
    """A daemon that died while fetching or unmounting leaves nothing for ever."""
    world.files.store(world.other, BOOTSTRAP, "identity", b"x", str(Digest.of(b"x")), 1)  # no record: incomplete
    async with world.daemon() as node:
        path = await node.chains.mount(world.chain)
        world.kernel.fails.append(MountError("unmount", path, 16))
        with pytest.raises(ChainMountError, match="busy"):
            await node.chains.unmount(world.chain)
    assert path in world.kernel.at

    async with world.daemon() as node:
        await node.chains.restore()
        assert node.chains.mounted() == {}
    assert (world.kernel.at, world.files.chains()) == ({}, [])


async def test_a_lost_fuse_mount_is_replaced(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Without the old FUSE mount the old trees are broken: they are detached, named and mounted anew."""
    async with world.daemon() as node:
        path = await node.chains.mount(world.chain)

    async with world.daemon(session_is_new=True) as node:
        await node.chains.restore()
        assert node.chains.mounted() == {world.chain: path}
    assert (world.kernel.lazily, world.kernel.mounts) == ([path], 2)
    assert "must be restarted" in caplog.text


@pytest.mark.parametrize("again_by", ["mount", "mount_again"])
async def test_a_mount_that_can_not_be_read_is_replaced(world: World, again_by: str) -> None:
    """By the next user, or before: the old tree is detached for those who still have it, the place is the same."""
    async with world.daemon() as node:
        path = await node.chains.mount(world.chain, "first")
        node.chains.lost(world.chain)
        assert node.chains.mounted() == {}
        if again_by == "mount":
            assert await node.chains.mount(world.chain, "second") == path
        else:
            await node.chains.mount_again(world.chain)
        assert node.chains.mounted() == {world.chain: path}
        assert (world.kernel.lazily, world.kernel.mounts) == ([path], 2)
        await node.chains.mount_again(world.chain)
        assert world.kernel.mounts == 2, "it is mounted"


@pytest.mark.fault(
    "rot: bootstrap or chunk map on the node",
    done="a byte flipped",
    promised="noticed before it is mounted, fetched again",
)
@pytest.mark.parametrize("name", [BOOTSTRAP, CHUNK_MAP])
async def test_damaged_files_are_noticed_and_fetched_again(world: World, name: str) -> None:
    """A flipped bit on the disk is found at the restart; readers get the right tree."""
    async with world.daemon() as node:
        path = await node.chains.mount(world.chain)
    victim = world.files.directory(world.chain) / name
    damaged = bytearray(victim.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    victim.write_bytes(damaged)

    async with world.daemon() as node:
        await node.chains.restore()
    assert world.kernel.at[path] == world.proxy.chains[str(world.chain)][1].bootstrap
    assert world.files.open(world.chain).record.users == ("containerd",)


async def test_wrong_bytes_from_the_proxy_are_never_mounted(world: World) -> None:
    """Tried again, and refused when they stay wrong; nothing is left behind that looks right."""
    world.proxy.wrong_artifacts = 2
    async with world.daemon() as node:
        await node.chains.mount(world.chain)
        world.proxy.wrong_artifacts = 100
        with pytest.raises(ChainDamagedError, match="digest"):
            await node.chains.mount(world.other)
        assert (await node.chains.state(world.other, 0.0)).state == "ready", "the proxy's answer"
        assert world.files.record(world.other) is None


async def test_a_mount_that_the_kernel_refuses_is_not_remembered(world: World) -> None:
    """The error names the kernel's reason; the next try starts afresh."""
    async with world.daemon() as node:
        world.kernel.fails.append(MountError("mount erofs on", node.chains.path_of(world.chain), 22))
        with pytest.raises(ChainMountError, match="Invalid argument"):
            await node.chains.mount(world.chain)
        assert (node.chains.mounted(), node.session.devices, node.chains.users(world.chain)) == ({}, {}, ())
        await node.chains.mount(world.chain)
        assert node.chains.users(world.chain) == ("containerd",)


@pytest.mark.parametrize(
    ("state", "error"),
    [
        pytest.param(None, ChainUnknownError, id="unknown"),
        pytest.param(ChainState(chain_id=str(UNKNOWN), state="indexing"), ChainNotReadyError, id="indexing"),
        pytest.param(ChainState(chain_id=str(UNKNOWN), state="failed", error="a bomb"), ChainFailedError, id="failed"),
        pytest.param(
            ChainState(chain_id=str(UNKNOWN), state="ready", bootstrap_bytes=1 << 40), ChainFailedError, id="too-large"
        ),
    ],
)
async def test_what_can_not_be_mounted_says_why(world: World, state: ChainState | None, error: type[Exception]) -> None:
    """Each kind of refusal is an error of its own, with a remedy."""
    if state is not None:
        world.proxy.chains[str(UNKNOWN)] = state, world.proxy.chains[str(world.chain)][1]
    async with world.daemon() as node:
        with pytest.raises(error) as raised:
            await node.chains.mount(UNKNOWN)
    assert raised.value.remedy  # type: ignore[attr-defined]
    assert world.files.chains() == []


async def test_an_unreachable_proxy_makes_a_chain_unknown(world: World) -> None:
    """containerd then unpacks as always; a mount says what is wrong."""
    settings = NodeSettings(proxies=("http://127.0.0.1:9",))
    async with ProxyClient.open(settings) as client:
        world.client = client
        async with world.daemon() as node:
            assert (await node.chains.state(world.chain, 10.0)).state == "unknown"
            with pytest.raises(ProxyUnreachableError):
                await node.chains.mount(world.chain)


async def test_suspended_chains_come_back(world: World) -> None:
    """``stop`` unmounts everything and forgets nothing."""
    async with world.daemon() as node:
        await node.chains.mount(world.chain)
        await node.chains.suspend()
        assert (world.kernel.at, node.session.devices) == ({}, {})

    async with world.daemon() as node:
        await node.chains.restore()
        assert list(node.chains.mounted()) == [world.chain]


@pytest.mark.parametrize("name", [BOOTSTRAP, CHUNK_MAP])
async def test_damaged_files_are_replaced_while_the_daemon_runs(world: World, name: str) -> None:
    """The tree that is mounted, and the device under it, are those of the new files; users and prefetch stay."""
    async with world.daemon() as node:
        path = await node.chains.mount(world.chain)
        device = node.session.devices[world.chain.hex]
        victim = world.files.directory(world.chain) / name
        victim.write_bytes(victim.read_bytes()[:-1] + b"?")

        await node.chains.repair(world.chain)

        assert node.session.devices[world.chain.hex] is not device
        assert world.kernel.at[path] == world.proxy.chains[str(world.chain)][1].bootstrap
        assert node.chains.users(world.chain) == ("containerd",)
        assert node.prefetcher.following == [world.chain]


async def test_a_repair_of_what_is_right_changes_nothing(world: World) -> None:
    """Somebody else has replaced it, or it is not here."""
    async with world.daemon() as node:
        await node.chains.mount(world.chain)
        await node.chains.repair(world.chain)
        await node.chains.repair(UNKNOWN)
        assert world.kernel.mounts == 1
