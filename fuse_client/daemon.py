"""The composition root of ``fastpull-node serve``: the one place that knows every concrete class."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import signal
import socket
from array import array
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from fastpull.cache.digest import ChunkId, Digest
from fastpull.cache.scrub import Scrubs
from fastpull.cache.tables import Database
from fastpull.cache.tasks import Tasks
from fastpull.cache.writer import Writer
from fastpull.config.node import NodeSettings
from fastpull.fuse_client import page_warmer
from fastpull.fuse_client.chain_files import ChainFiles
from fastpull.fuse_client.chains import Chains
from fastpull.fuse_client.control_messages import FEATURES_FILE
from fastpull.fuse_client.device import ChainDevice
from fastpull.fuse_client.drivers.choice import Drivers, choose, has_pyfuse3
from fastpull.fuse_client.drivers.portable import PortableDriver
from fastpull.fuse_client.drivers.probe import KernelFeatures, probe
from fastpull.fuse_client.errors import ChainError, DaemonError
from fastpull.fuse_client.fetch.client import ProxyClient
from fastpull.fuse_client.fetch.counters import FetchCounters
from fastpull.fuse_client.fetch.fetcher import Fetcher
from fastpull.fuse_client.fetch.keeper import Keeper
from fastpull.fuse_client.fetch.queue import FetchQueue, Limits
from fastpull.fuse_client.node import Node, node_name
from fastpull.fuse_client.node_cache import open_cache
from fastpull.fuse_client.portable.children import Children
from fastpull.fuse_client.portable.server import SOCKET_NAME, PortableServer
from fastpull.fuse_client.prefetch import Prefetcher
from fastpull.fuse_client.scrub import checks_of_node
from fastpull.fuse_client.session.holder_keeper import HolderKeeper
from fastpull.fuse_client.session.keeper import find_keeper
from fastpull.fuse_client.session.server import FuseSession
from fastpull.fuse_client.session.takeover import DevicesMount
from fastpull.fuse_client.start_record import StartFiles
from fastpull.fuse_client.trace_spool import TraceSpool
from fastpull.fuse_client.tracer import Tracer
from fastpull.image.chunk_map import ChunkMap

log = logging.getLogger(__name__)

DECODE_THREADS = 4
WAIT_FOR_DAEMON_SECONDS = 30.0  # by a child of the portable driver, beyond the daemon's own retries
CRASH_LOOP_SECONDS = 10.0


@contextlib.asynccontextmanager
async def open_node(settings: NodeSettings, *, snapshotter: bool = True) -> AsyncIterator[Node]:
    """Build a node and register the devices of everything that is still mounted. Its session answers already.

    Closed in reverse, also after a failed start. What is mounted stays mounted. Raise ``NodeError``,
    ``CacheError`` or ``ConfigError``.
    """
    settings.root.mkdir(mode=0o711, parents=True, exist_ok=True)
    # As the kernel lists its mounts: without symbolic links.
    settings = msgspec.structs.replace(settings, root=settings.root.resolve(), run_dir=settings.run_dir.resolve())
    async with contextlib.AsyncExitStack() as stack:
        find = functools.partial(find_keeper, environ=os.environ)
        mount = await asyncio.to_thread(DevicesMount.open, settings.run_dir, find)
        stack.callback(mount.close)
        features = await kernel_features(settings.run_dir)
        choice = choose(settings.driver, features, has_pyfuse3=has_pyfuse3())
        log.info("driver %s: %s", choice.name, choice.reason)
        children = Children(settings.run_dir)
        portable = PortableDriver(
            children,
            settings.root,
            store=settings.root / "cache",
            socket=settings.run_dir / SOCKET_NAME,
            wait_seconds=settings.fetch.retry_seconds + WAIT_FOR_DAEMON_SECONDS,
            verify_always=settings.cache.verify == "always",
        )
        children_server = PortableServer()
        children_server.on_hangup = portable.look

        store, store_failure = open_cache(settings.root / "cache", int(settings.cache.max_bytes))
        stack.callback(store.close)
        writer = await stack.enter_async_context(Writer())
        client = await stack.enter_async_context(ProxyClient.open(settings))
        threads = ThreadPoolExecutor(max_workers=DECODE_THREADS, thread_name_prefix="decode")
        stack.callback(threads.shutdown, cancel_futures=True)
        tasks = Tasks()

        counters = FetchCounters()
        keeper = Keeper(store, writer, tasks, counters)
        stack.push_async_callback(tasks.aclose)
        stack.push_async_callback(keeper.flush)
        queue = FetchQueue(limits(settings))
        retry_seconds = settings.fetch.retry_seconds
        fetcher = Fetcher(client, keeper, queue, tasks, threads, counters, retry_seconds=retry_seconds)
        stack.callback(fetcher.close)
        client.transport.on_recovery.append(fetcher.wake)

        spool = TraceSpool(settings.root / "traces", client.send_trace, tasks)
        client.transport.on_recovery.append(spool.wake)
        files = ChainFiles(settings.root)

        async def warm(device: ChainDevice, order: array[int]) -> None:
            if settings.prefetch.warm_page_cache:
                tracer.discard(device.chain)  # reading ahead looks like reading
            elif tracer.is_recording(device.chain):
                return
            ranges = [(device.map.offset_at(index), device.map.size_at(index)) for index in order]
            await page_warmer.warm(files.bootstrap(device.chain), files.rootfs(device.chain), ranges)

        prefetcher = Prefetcher(client, fetcher, store, settings.prefetch, tasks, warm=warm)
        starts = StartFiles(settings.root)
        tracer = Tracer(settings.trace, spool.add, starts, prefetcher.orders, node_name(), tasks)
        fetcher.on_arrival = tracer.arrived

        session = FuseSession(mount.descriptor(), resumed=mount.resumed)
        stack.push_async_callback(session.aclose)

        async def drop(chunks: Sequence[ChunkId]) -> int:
            return await writer.run(store.drop, chunks)

        def open_device(chain: Digest, chunk_map: ChunkMap) -> ChainDevice:
            return ChainDevice(
                chain,
                chunk_map,
                store,
                fetcher,
                drop,
                verify_always=settings.cache.verify == "always",
                window_bytes=settings.fetch.window_bytes,
            )

        chains = Chains(
            files,
            client,
            (session, children_server),
            Drivers(choice, features, portable),
            open_device,
            device_directory=mount.path,
            prefetcher=prefetcher,
            tracer=tracer,
            tasks=tasks,
        )

        def in_use(chunk: ChunkId) -> bool:
            return any(device.needs(chunk) for device in chains.devices())

        def child_died(target: Path, lived_seconds: float) -> None:
            chain = Digest(target.parent.name)
            chains.lost(chain)
            if lived_seconds > CRASH_LOOP_SECONDS:  # else only the next user starts another one
                _ = tasks.spawn(_mount_again(chains, chain), name=f"mount {chain} again")

        store.protect(in_use)
        await chains.register(session_is_new=not mount.resumed)
        session.start()
        if choice.name == "fuse" or children.living():
            await stack.enter_async_context(children_server.listen(settings.run_dir))
            portable.on_lost = child_died
            _ = tasks.spawn(portable.watch(), name="watch the children")
        spool.start()
        node = Node(
            settings=settings,
            features=features,
            driver_name=choice.name,
            driver_reason=choice.reason,
            portable=portable,
            store=store,
            store_failure=store_failure,
            writer=writer,
            client=client,
            queue=queue,
            keeper=keeper,
            fetcher=fetcher,
            prefetcher=prefetcher,
            tracer=tracer,
            spool=spool,
            mount=mount,
            session=session,
            chains=chains,
            scrubs=Scrubs(checks_of_node(settings.root, store, drop, chains)),
            tasks=tasks,
            snapshotter_socket=settings.snapshotter.socket if snapshotter else None,
        )
        _ = tasks.spawn(node.housekeeping(), name="housekeeping")
        _ = tasks.spawn(node.watch_holder(), name="watch the holder")
        yield node


async def serve(
    settings: NodeSettings,
    *,
    snapshotter: bool = True,
    ready: Callable[[], None] = lambda: None,
) -> None:
    """Run the daemon until SIGTERM, SIGINT or ``fastpull-node stop``. ``ready`` is called once it serves.

    On a signal everything stays mounted for the next daemon. Raise ``DaemonError`` when the FUSE mount is
    gone from under it: started anew, it makes another.
    """
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    async with contextlib.AsyncExitStack() as stack:
        node = await stack.enter_async_context(open_node(settings, snapshotter=snapshotter))
        # Readers of what is mounted have their answers; what only the others need is imported now (200 ms).
        from fastpull.fuse_client.control import Control, metrics_listener

        if node.snapshotter_socket is not None:
            find_chain = await stack.enter_async_context(_snapshots(node, node.snapshotter_socket))
            control = Control(node, stopping.set, find_chain)
        else:
            control = Control(node, stopping.set)
        await stack.enter_async_context(control.listen(settings.run_dir))
        if settings.metrics_port:
            listener = metrics_listener(node, settings.metrics_address, settings.metrics_port)
            await stack.enter_async_context(listener)
        # containerd gets its answers from here on; what is still to be mounted follows.
        sd_notify("READY=1")
        ready()
        _ = node.tasks.spawn(_restore(node), name="restore")
        reason = await _until_stopped(node, stopping)
        sd_notify("STOPPING=1")
        if control.unmount_at_end:
            await _unmount_everything(node)
    if reason is not None:
        raise DaemonError(f"the FUSE mount is gone: {reason}", remedy="start the daemon anew")


async def _mount_again(chains: Chains, chain: Digest) -> None:
    try:
        await chains.mount_again(chain)
    except ChainError as exc:
        log.error("%s; the next container that needs it tries again", exc)  # noqa: TRY400 - the message says all
    else:
        log.warning("chain %s is mounted again for new containers", chain)


async def _restore(node: Node) -> None:
    await node.chains.restore()
    node.session.settle()
    log.info("%d chains are mounted, driver %s", len(node.chains.mounted()), node.driver_name)


async def _until_stopped(node: Node, stopping: asyncio.Event) -> str | None:
    tasks = Tasks()
    try:
        ended = tasks.spawn(node.session.ended(), name="session")
        stopped = tasks.spawn(stopping.wait(), name="stop")
        await asyncio.wait([ended, stopped], return_when=asyncio.FIRST_COMPLETED)
        return ended.result() if ended.done() else None
    finally:
        await tasks.aclose()


async def _unmount_everything(node: Node) -> None:
    await node.tasks.aclose()  # among them the watch that would replace the holder
    await node.session.aclose(hand_over=False)
    await asyncio.to_thread(node.mount.unmount)
    if isinstance(node.mount.keeper, HolderKeeper):
        node.mount.keeper.stop()


@contextlib.asynccontextmanager
async def _snapshots(node: Node, path: Path) -> AsyncIterator[Callable[[str], Digest | None]]:
    """Serve containerd until the block ends; gives the look-up of a container's chain."""
    # gRPC takes 150 ms and 15 MB; a daemon for one `mount` needs none of it.
    from fastpull.fuse_client.snapshotter import journal
    from fastpull.fuse_client.snapshotter.containers import chain_of
    from fastpull.fuse_client.snapshotter.server import SnapshotServer

    database = Database.open(node.settings.root / "state", tables=journal.TABLES)
    try:
        server = SnapshotServer.build(
            path=path,
            root=node.settings.root,
            database=database,
            chains=node.chains,
            prepare_wait_seconds=node.settings.snapshotter.prepare_wait_seconds,
        )
        server.start()
        try:
            yield lambda name: chain_of(server.snapshotter.list(), name)
        finally:
            await server.aclose()
    finally:
        database.close()


def limits(settings: NodeSettings) -> Limits:
    """The scheduler's limits."""
    return Limits(
        connections=settings.fetch.connections,
        prefetch_connections=settings.prefetch.connections,
        batch_bytes=settings.fetch.batch_bytes,
        prefetch_batch_bytes=2 * settings.fetch.batch_bytes,
    )


async def kernel_features(run_dir: Path) -> KernelFeatures:
    """What the kernel can; found out once for each boot (``run_dir`` does not outlive it)."""
    path = run_dir / FEATURES_FILE
    release = os.uname().release
    with contextlib.suppress(OSError, msgspec.DecodeError):
        known = msgspec.json.decode(path.read_bytes(), type=KernelFeatures)
        if known.release == release and known.erofs_usable and known.fuse_minor:
            return known
    features = await probe(run_dir / "probe")
    with contextlib.suppress(OSError):
        path.write_bytes(msgspec.json.encode(features))
    return features


def sd_notify(text: str) -> None:
    """Tell systemd, if it asked (sd_notify(3)). Never fails."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect(address)
        sock.send(text.encode())
