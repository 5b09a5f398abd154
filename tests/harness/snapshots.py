"""The snapshotter served in the test's own process, and a client that speaks to it as containerd does."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import grpc
from google.protobuf.empty_pb2 import Empty
from google.protobuf.field_mask_pb2 import FieldMask

from fastpull.cache.tables import Database
from fastpull.fuse_client.snapshotter.journal import TABLES
from fastpull.fuse_client.snapshotter.lazy_chains import Chains
from fastpull.fuse_client.snapshotter.operations import Snapshotter
from fastpull.fuse_client.snapshotter.pb import snapshots_pb2 as pb
from fastpull.fuse_client.snapshotter.server import SnapshotServer
from fastpull.fuse_client.snapshotter.service import SERVICE

CALL_SECONDS = 60.0
_MAP_BYTES = 64 << 20


class ServedSnapshotter:
    """A snapshotter on ``<root>/snapshotter.sock``, its event loop on a thread of its own.

    May be stopped and started again: state and directories stay under ``root``.
    """

    def __init__(
        self,
        root: Path,
        chains: Chains,
        *,
        prepare_wait_seconds: float = 0.5,
        quiet_seconds: float = 0.05,
        step: Callable[[str], None] = lambda _: None,
        allow_mounts: bool = True,
    ) -> None:
        self._allow_mounts = allow_mounts
        self.root = root
        self.socket = root / "snapshotter.sock"
        self._chains = chains
        self._options: dict[str, Any] = {
            "prepare_wait_seconds": prepare_wait_seconds,
            "quiet_seconds": quiet_seconds,
            "step": step,
        }
        self.loop: asyncio.AbstractEventLoop
        self._thread: threading.Thread
        self._server: SnapshotServer
        self._database: Database

    def start(self) -> Self:
        self.root.mkdir(parents=True, exist_ok=True)
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="snapshotter loop")
        self._thread.start()
        self._database = Database.open(self.root / "state", tables=TABLES, map_bytes=_MAP_BYTES)
        self._server = self.on_loop(self._build())
        self.on_loop(self._start())
        return self

    def allow_mounts(self) -> None:
        self.loop.call_soon_threadsafe(self._server.allow_mounts)

    def stop(self) -> None:
        self.on_loop(self._server.aclose())
        self.abandon()

    def abandon(self) -> None:
        """End without a word to the server, as a crash would."""
        self.on_loop(cancel_all_tasks())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()
        self._database.close()

    def on_loop(self, work: Any, seconds: float = CALL_SECONDS) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(seconds)

    @property
    def snapshotter(self) -> Snapshotter:
        """Behind the socket; its calls block, so never from ``loop``."""
        return self._server.snapshotter

    def client(self) -> SnapshotsClient:
        return SnapshotsClient(self.socket)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    async def _start(self) -> None:
        self._server.start(allow_mounts=self._allow_mounts)

    async def _build(self) -> SnapshotServer:
        return SnapshotServer.build(
            path=self.socket, root=self.root, database=self._database, chains=self._chains, **self._options
        )


class SnapshotsClient:
    """Raises ``grpc.RpcError``, whose ``code()`` is what containerd would act on."""

    def __init__(self, socket: Path) -> None:
        self._channel = grpc.insecure_channel(f"unix:{socket}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def prepare(
        self, key: str, parent: str = "", labels: Mapping[str, str] | None = None, *, seconds: float = CALL_SECONDS
    ) -> list[Any]:
        request = pb.PrepareSnapshotRequest(snapshotter="fastpull", key=key, parent=parent, labels=labels)
        return list(self._call("Prepare", request, pb.PrepareSnapshotResponse, seconds).mounts)

    def view(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> list[Any]:
        request = pb.ViewSnapshotRequest(snapshotter="fastpull", key=key, parent=parent, labels=labels)
        return list(self._call("View", request, pb.ViewSnapshotResponse).mounts)

    def mounts(self, key: str) -> list[Any]:
        return list(self._call("Mounts", pb.MountsRequest(key=key), pb.MountsResponse).mounts)

    def commit(self, name: str, key: str, labels: Mapping[str, str] | None = None, *, parent: str = "") -> None:
        self._call("Commit", pb.CommitSnapshotRequest(name=name, key=key, labels=labels, parent=parent), Empty)

    def remove(self, key: str) -> None:
        self._call("Remove", pb.RemoveSnapshotRequest(key=key), Empty)

    def stat(self, key: str) -> pb.Info:
        return self._call("Stat", pb.StatSnapshotRequest(key=key), pb.StatSnapshotResponse).info

    def update(self, name: str, labels: Mapping[str, str], fields: Sequence[str] = ()) -> pb.Info:
        info = pb.Info(name=name, labels=labels, kind=pb.COMMITTED)
        info.created_at.seconds = -62135596800  # Go's zero time, as containerd sends it
        request = pb.UpdateSnapshotRequest(info=info, update_mask=FieldMask(paths=fields))
        return self._call("Update", request, pb.UpdateSnapshotResponse).info

    def list(self, *filters: str) -> list[Any]:
        call = self._channel.unary_stream(
            f"/{SERVICE}/List",
            request_serializer=pb.ListSnapshotsRequest.SerializeToString,
            response_deserializer=pb.ListSnapshotsResponse.FromString,
        )
        request = pb.ListSnapshotsRequest(filters=filters)
        return [info for part in call(request, timeout=CALL_SECONDS, wait_for_ready=True) for info in part.info]

    def usage(self, key: str) -> tuple[int, int]:
        answer = self._call("Usage", pb.UsageRequest(key=key), pb.UsageResponse)
        return answer.size, answer.inodes

    def cleanup(self) -> None:
        self._call("Cleanup", pb.CleanupRequest(), Empty)

    def _call(self, method: str, request: Any, answer: Any, seconds: float = CALL_SECONDS) -> Any:
        call = self._channel.unary_unary(
            f"/{SERVICE}/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=answer.FromString,
        )
        return call(request, timeout=seconds, wait_for_ready=True)


async def cancel_all_tasks() -> None:
    """Whatever else runs on this loop ends before the loop does."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
