"""The chains of a node: from a name to a mounted tree, and back."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from fastpull.cache.digest import Digest
from fastpull.cache.keyed_locks import KeyedLocks
from fastpull.cache.tasks import Tasks
from fastpull.cache.wire import ChainState
from fastpull.fuse_client.chain_files import BOOTSTRAP, CHUNK_MAP, ChainFiles, OpenChain, Record
from fastpull.fuse_client.device import ChainDevice
from fastpull.fuse_client.drivers.errors import DriverError
from fastpull.fuse_client.errors import (
    ChainDamagedError,
    ChainError,
    ChainFailedError,
    ChainMountError,
    ChainNotReadyError,
    ChainUnknownError,
    NodeError,
    ProxyError,
)
from fastpull.fuse_client.fetch.client import Artifact, ProxyClient
from fastpull.image.chunk_map import ChunkMap

log = logging.getLogger(__name__)

CONTAINERD = "containerd"
READY_WAIT_SECONDS = 10.0
MAX_ARTIFACT_BYTES = 1 << 30
DOWNLOAD_ATTEMPTS = 3  # of files that do not have the promised digest


class Devices(Protocol):
    """``FuseSession``, which serves devices as files, and ``PortableServer``, which lends them to processes."""

    def add(self, name: str, device: ChainDevice) -> object: ...

    def remove(self, name: str) -> None: ...


class Driver(Protocol):
    """``drivers.choice.Drivers``. Raises ``DriverError``."""

    async def mount(self, bootstrap: Path, device: Path, target: Path) -> None: ...

    async def unmount(self, target: Path, *, lazy: bool = False) -> None: ...

    def mounted(self, root: Path) -> Sequence[object]: ...

    def lost(self, target: Path, *, session_is_new: bool) -> bool:
        """Whether what is mounted there can not be read any more, by nobody."""
        ...


class Follower(Protocol):
    """Is told which devices are in use: the prefetcher and the tracer."""

    def start(self, device: ChainDevice) -> None: ...

    def stop(self, chain: Digest) -> None: ...


class Prefetches(Follower, Protocol):
    """Is told of every start of a container, and of chains that were mounted before the daemon started."""

    def resume(self, device: ChainDevice) -> None: ...


# A question that waits is asked anew so often: a proxy that died meanwhile is noticed.
ROUND_SECONDS = 20.0


class Chains:
    """Mounts chains at ``<root>/chains/<hex>/rootfs`` for those who use them, and keeps them mounted over restarts.

    What is to be mounted stands in the chain's record before the kernel is asked, and is taken out of it
    before the kernel is asked to unmount: after a crash at any point ``restore`` makes the kernel's state
    that of the records. One chain is mounted, unmounted or restored by one task at a time.

    A chain's device has its hex name in the session, always: the kernel's handles outlive the daemon.
    """

    def __init__(
        self,
        files: ChainFiles,
        client: ProxyClient,
        devices: Sequence[Devices],
        driver: Driver,
        open_device: Callable[[Digest, ChunkMap], ChainDevice],
        *,
        device_directory: Path,
        prefetcher: Prefetches,
        tracer: Follower,
        tasks: Tasks,
    ) -> None:
        self._files = files
        self._client = client
        self._shared = devices
        self._driver = driver
        self._open_device = open_device
        self._device_directory = device_directory
        self._prefetcher = prefetcher
        self._tracer = tracer
        self._tasks = tasks
        self._devices: dict[Digest, ChainDevice] = {}
        self._mounted: dict[Digest, Path] = {}
        self._followed: set[Digest] = set()  # whose start is prefetched and traced
        self._damaged: set[Digest] = set()  # files on disk, wanted
        self._broken: set[Digest] = set()  # mounted, and can not be read any more
        self._locks: KeyedLocks[Digest] = KeyedLocks()

    # -- asking --------------------------------------------------------------------------------------

    async def state(self, chain_id: Digest, wait_seconds: float) -> ChainState:
        """Whether the chain can be served. What is on this node is ready, whatever the proxy says.

        A proxy that is indexing it may take ``wait_seconds``; one that can not be reached makes it unknown.
        """
        record = await asyncio.to_thread(self._files.record, chain_id)
        if record is not None:
            return record.state
        deadline = time.monotonic() + wait_seconds
        try:
            while True:
                left = max(0.0, deadline - time.monotonic())
                state = await self._client.chain_state(chain_id, min(left, ROUND_SECONDS), build=False)
                if state.state != "indexing" or left <= ROUND_SECONDS:
                    return state
        except ProxyError as exc:
            log.warning("chain %s: %s", chain_id, exc)
            return ChainState(chain_id=str(chain_id), state="unknown", error=str(exc))

    def path_of(self, chain_id: Digest) -> Path:
        """Where the chain's tree is, or would be, mounted."""
        return self._files.rootfs(chain_id)

    def mounted(self) -> Mapping[Digest, Path]:
        return dict(self._mounted)

    def devices(self) -> Sequence[ChainDevice]:
        return list(self._devices.values())

    def users(self, chain_id: Digest) -> tuple[str, ...]:
        """Who wants the chain mounted."""
        record = self._files.record(chain_id)
        return record.users if record else ()

    def record_state(self, chain_id: Digest) -> ChainState | None:
        """What the proxy said of a chain that is on this node."""
        record = self._files.record(chain_id)
        return record.state if record else None

    # -- mounting ------------------------------------------------------------------------------------

    async def mount(self, chain_id: Digest, user: str = CONTAINERD, *, follow: bool = True) -> Path:
        """Mount the chain for ``user`` and return its root. Idempotent; concurrent calls share the work.

        ``follow``: a container starts from it, so fetch and read ahead along its plan, and trace the first start
        of each mount; without, it is a look that should neither cost nor teach anything. Raise ``ChainError``,
        or ``ProxyError`` when its files are not here and no proxy can be asked.
        """
        async with self._locks.alone(chain_id):
            record = await asyncio.to_thread(self._files.record, chain_id)
            if chain_id in self._mounted and record is not None:
                await self._set_users(chain_id, record, {*record.users, user})
                self._follow(chain_id, follow=follow)
                return self._mounted[chain_id]
            if record is None or chain_id not in self._devices:
                opened = await self._open_or_fetch(chain_id)
                record = opened.record
                self._add_device(chain_id, opened.map)
            record = await self._set_users(chain_id, record, {*record.users, user})
            try:
                await self._mount_device(chain_id)
            except ChainMountError:
                record = await self._set_users(chain_id, record, set(record.users) - {user})
                if not record.users:
                    self._forget_device(chain_id)
                raise
            self._follow(chain_id, follow=follow)
            return self._mounted[chain_id]

    async def unmount(self, chain_id: Digest, user: str = CONTAINERD) -> None:
        """``user`` needs the chain no longer. The last one to say so unmounts it and removes its files.

        Raise ``ChainMountError`` when the kernel refuses; it then stays mounted for nobody, until somebody asks
        again or the daemon starts anew.
        """
        async with self._locks.alone(chain_id):
            record = await asyncio.to_thread(self._files.record, chain_id)
            if record is not None:
                users = set(record.users) - {user}
                await self._set_users(chain_id, record, users)
                if users:
                    return
            await self._unmount(chain_id)

    def lost(self, chain_id: Digest) -> None:
        """What is mounted can not be read any more. Who wants the chain next gets another mount at the same place."""
        if self._mounted.pop(chain_id, None) is not None:
            self._broken.add(chain_id)

    async def mount_again(self, chain_id: Digest) -> None:
        """After ``lost``: do not wait for the next user. Raise ``ChainMountError``."""
        async with self._locks.alone(chain_id):
            if chain_id in self._devices and chain_id not in self._mounted:
                await self._mount_device(chain_id)

    async def repair(self, chain_id: Digest) -> None:
        """Fetch the chain's files anew if they are damaged, and mount from them: new containers read what is right.

        Who has files open keeps the old tree, over the new chunk map. Raise ``ChainError`` or ``ProxyError``; the
        damaged files are then still there, and are looked at again at the next start.
        """
        async with self._locks.alone(chain_id):
            record = await asyncio.to_thread(self._files.record, chain_id)
            if record is None:
                return
            with suppress(ChainDamagedError):
                await asyncio.to_thread(self._files.open, chain_id)
                return
            log.error("chain %s: its files on this node are damaged; they are fetched anew", chain_id)
            if record.users:
                await self._exchange(chain_id, record.users)
            else:
                await self._unmount(chain_id)

    # -- after a restart -----------------------------------------------------------------------------

    async def register(self, *, session_is_new: bool = False) -> None:
        """Open the devices of all chains that have users.

        The first thing a new daemon does, before its session answers: it needs no proxy. ``session_is_new``:
        the FUSE mount of the earlier daemon is gone, and with it the data of everything mounted on top of it.
        """
        for chain in await asyncio.to_thread(self._files.chains):
            if self._driver.lost(self._files.rootfs(chain), session_is_new=session_is_new):
                self._broken.add(chain)
            record = await asyncio.to_thread(self._files.record, chain)
            if record is None or not record.users:
                continue
            try:
                opened = await asyncio.to_thread(self._files.open, chain)
            except ChainDamagedError as exc:
                log.error("%s; it is fetched anew", exc)  # noqa: TRY400 - the message says all
                self._damaged.add(chain)
            else:
                self._add_device(chain, opened.map)

    async def restore(self) -> None:
        """Make what is mounted what the records say, after ``register`` and with the session running.

        Never asks the proxy about what is on disk. A chain that fails is logged; the others go on.
        """
        for chain in await asyncio.to_thread(self._files.chains):
            if chain in self._damaged:
                _ = self._tasks.spawn(self._replace(chain), name=f"repair {chain}")
                continue
            try:
                async with self._locks.alone(chain):
                    await self._restore(chain)
            except NodeError as exc:
                log.error("%s can not be restored: %s", chain, exc)  # noqa: TRY400 - the message says all

    async def _restore(self, chain: Digest) -> None:
        device = self._devices.get(chain)
        if device is None:  # nobody wants it, or its files are incomplete
            await self._unmount(chain)
        elif chain not in self._mounted:
            await self._mount_device(chain)
            if CONTAINERD in self.users(chain):
                self._followed.add(chain)  # its start was traced, or is lost
                self._prefetcher.resume(device)

    async def suspend(self) -> None:
        """Unmount everything, and keep files and records: the next ``restore`` mounts it again.

        Raise ``ChainMountError`` naming the first chain whose files are in use.
        """
        for chain in list(self._mounted):
            async with self._locks.alone(chain):
                self._unfollow(chain)
                await self._unmount_kernel(chain)
                self._forget_device(chain)

    async def _replace(self, chain: Digest) -> None:
        """Fetch damaged files anew and mount from them."""
        async with self._locks.alone(chain):
            record = self._files.record(chain)
            await self._exchange(chain, record.users if record else ())
            self._damaged.discard(chain)

    async def _exchange(self, chain: Digest, users: Sequence[str]) -> None:
        opened = await self._fetch(chain, users)
        was_followed = chain in self._followed
        self._unfollow(chain)
        self._add_device(chain, opened.map)
        await self._unmount_kernel(chain, lazy=True)  # who has files open keeps the old tree
        await self._mount_device(chain)
        if was_followed:
            self._followed.add(chain)
            self._prefetcher.resume(self._devices[chain])

    # -- inside --------------------------------------------------------------------------------------

    async def _open_or_fetch(self, chain: Digest) -> OpenChain:
        if await asyncio.to_thread(self._files.record, chain) is not None:
            try:
                return await asyncio.to_thread(self._files.open, chain)
            except ChainDamagedError as exc:
                log.warning("%s; it is fetched anew", exc)
        return await self._fetch(chain)

    async def _fetch(self, chain: Digest, users: Sequence[str] = ()) -> OpenChain:
        state = await self._client.chain_state(chain, READY_WAIT_SECONDS)
        if state.state == "unknown":
            raise ChainUnknownError(chain)
        if state.state == "indexing":
            raise ChainNotReadyError(chain)
        if state.state == "failed":
            raise ChainFailedError(chain, state.error)
        if max(state.bootstrap_bytes, state.chunk_map_bytes) > MAX_ARTIFACT_BYTES:
            raise ChainFailedError(chain, f"its files are larger than {MAX_ARTIFACT_BYTES} bytes")
        await asyncio.gather(
            self._download(chain, "bootstrap", BOOTSTRAP, state.bootstrap_digest, state.bootstrap_bytes),
            self._download(chain, "chunkmap", CHUNK_MAP, state.chunk_map_digest, state.chunk_map_bytes),
        )
        with _disk_errors(chain):
            await asyncio.to_thread(self._files.write_record, chain, Record(state=state, users=tuple(users)))
        return await asyncio.to_thread(self._files.open, chain)

    async def _download(self, chain: Digest, which: Artifact, name: str, digest: str, size: int) -> None:
        for left in reversed(range(DOWNLOAD_ATTEMPTS)):
            # Incompressible bytes grow a little under zstd.
            encoding, raw = await self._client.artifact(chain, which, size + size // 64 + 4096)
            try:
                with _disk_errors(chain):
                    await asyncio.to_thread(self._files.store, chain, name, encoding, raw, digest, size)
            except ChainDamagedError:
                if not left:
                    raise
            else:
                return

    def _add_device(self, chain: Digest, chunk_map: ChunkMap) -> None:
        self._devices[chain] = device = self._open_device(chain, chunk_map)
        for devices in self._shared:
            devices.add(chain.hex, device)

    async def _mount_device(self, chain: Digest) -> None:
        target = self._files.rootfs(chain)
        if chain in self._broken:
            log.error("chain %s lost its data: containers that run on it must be restarted, new ones work", chain)
            await self._unmount_kernel(chain, lazy=True)
            self._broken.discard(chain)
        try:
            if not self._driver.mounted(target):
                await self._driver.mount(self._files.bootstrap(chain), self._device_directory / chain.hex, target)
        except DriverError as exc:
            raise ChainMountError(chain, str(exc), remedy=exc.remedy) from exc
        self._mounted[chain] = target

    async def _unmount(self, chain: Digest) -> None:
        self._unfollow(chain)
        await self._unmount_kernel(chain, lazy=chain in self._broken)
        self._forget_device(chain)
        with _disk_errors(chain):
            await asyncio.to_thread(self._files.remove, chain)

    async def _unmount_kernel(self, chain: Digest, *, lazy: bool = False) -> None:
        try:
            await self._driver.unmount(self._files.rootfs(chain), lazy=lazy)
        except DriverError as exc:
            raise ChainMountError(chain, str(exc), remedy=exc.remedy) from exc
        self._mounted.pop(chain, None)

    def _follow(self, chain: Digest, *, follow: bool) -> None:
        if not follow:
            return
        device = self._devices[chain]
        if chain not in self._followed:
            self._followed.add(chain)
            device.forget_touches()  # those of a look before
            self._tracer.start(device)
        self._prefetcher.start(device)

    def _unfollow(self, chain: Digest) -> None:
        self._followed.discard(chain)
        self._tracer.stop(chain)  # first: it asks for the plan
        self._prefetcher.stop(chain)

    def _forget_device(self, chain: Digest) -> None:
        if self._devices.pop(chain, None) is not None:
            for devices in self._shared:
                devices.remove(chain.hex)

    async def _set_users(self, chain: Digest, record: Record, users: set[str]) -> Record:
        if set(record.users) == users:
            return record
        changed = Record(state=record.state, users=tuple(sorted(users)))
        with _disk_errors(chain):
            await asyncio.to_thread(self._files.write_record, chain, changed)
        return changed


@contextmanager
def _disk_errors(chain: Digest) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise ChainError(
            chain, f"its files can not be changed: {exc}", remedy="look at the disk that holds `root`: is it full?"
        ) from exc
