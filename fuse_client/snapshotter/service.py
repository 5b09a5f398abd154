"""``containerd.services.snapshots.v1.Snapshots``: gRPC messages in and out of ``Snapshotter``'s calls.

The handlers are registered by hand from one table, so that no generated service code, which is tied to a
grpcio version, is needed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import grpc
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from fastpull.cache.errors import CacheError, StoreFullError
from fastpull.fuse_client.errors import NodeError
from fastpull.fuse_client.snapshotter.errors import (
    SnapshotCancelledError,
    SnapshotExistsError,
    SnapshotInvalidError,
    SnapshotNotFoundError,
    SnapshotPreconditionError,
    SnapshotUnavailableError,
)
from fastpull.fuse_client.snapshotter.operations import Snapshotter
from fastpull.fuse_client.snapshotter.pb import mount_pb2, snapshots_pb2
from fastpull.fuse_client.snapshotter.placement import MountSpec
from fastpull.fuse_client.snapshotter.records import Snapshot

log = logging.getLogger(__name__)

SERVICE = "containerd.services.snapshots.v1.Snapshots"
LIST_BLOCK = 100  # as many infos as containerd's own service sends in one message

# What containerd makes of each: errdefs/grpc.go. Anything else reaches it as "unknown".
_CODES: tuple[tuple[type[Exception], grpc.StatusCode], ...] = (
    (SnapshotNotFoundError, grpc.StatusCode.NOT_FOUND),
    (SnapshotExistsError, grpc.StatusCode.ALREADY_EXISTS),
    (SnapshotPreconditionError, grpc.StatusCode.FAILED_PRECONDITION),
    (SnapshotInvalidError, grpc.StatusCode.INVALID_ARGUMENT),
    (SnapshotCancelledError, grpc.StatusCode.CANCELLED),
    (SnapshotUnavailableError, grpc.StatusCode.UNAVAILABLE),
    (StoreFullError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (NodeError, grpc.StatusCode.UNAVAILABLE),
    (CacheError, grpc.StatusCode.INTERNAL),
    (OSError, grpc.StatusCode.INTERNAL),
)
_EXPECTED = (SnapshotNotFoundError, SnapshotExistsError, SnapshotCancelledError)


class SnapshotsService:
    """One method for each RPC; each takes the request and the call's context."""

    def __init__(self, snapshotter: Snapshotter) -> None:
        self._snapshotter = snapshotter

    def prepare(
        self, request: snapshots_pb2.PrepareSnapshotRequest, context: grpc.ServicerContext
    ) -> snapshots_pb2.PrepareSnapshotResponse:
        mounts = self._snapshotter.prepare(request.key, request.parent, dict(request.labels), context)
        return snapshots_pb2.PrepareSnapshotResponse(mounts=map(_mount, mounts))

    def view(
        self, request: snapshots_pb2.ViewSnapshotRequest, context: grpc.ServicerContext
    ) -> snapshots_pb2.ViewSnapshotResponse:
        mounts = self._snapshotter.view(request.key, request.parent, dict(request.labels), context)
        return snapshots_pb2.ViewSnapshotResponse(mounts=map(_mount, mounts))

    def mounts(
        self, request: snapshots_pb2.MountsRequest, context: grpc.ServicerContext
    ) -> snapshots_pb2.MountsResponse:
        return snapshots_pb2.MountsResponse(mounts=map(_mount, self._snapshotter.mounts(request.key, context)))

    def commit(self, request: snapshots_pb2.CommitSnapshotRequest, _: grpc.ServicerContext) -> Empty:
        self._snapshotter.commit(request.name, request.key, request.parent, dict(request.labels))
        return Empty()

    def remove(self, request: snapshots_pb2.RemoveSnapshotRequest, _: grpc.ServicerContext) -> Empty:
        self._snapshotter.remove(request.key)
        return Empty()

    def stat(
        self, request: snapshots_pb2.StatSnapshotRequest, context: grpc.ServicerContext
    ) -> snapshots_pb2.StatSnapshotResponse:
        return snapshots_pb2.StatSnapshotResponse(info=_info(self._snapshotter.stat(request.key, context)))

    def update(
        self, request: snapshots_pb2.UpdateSnapshotRequest, context: grpc.ServicerContext
    ) -> snapshots_pb2.UpdateSnapshotResponse:
        # Of the info only name and labels count: Go sends a zero time and any kind.
        record = self._snapshotter.update(
            request.info.name, dict(request.info.labels), list(request.update_mask.paths), context
        )
        return snapshots_pb2.UpdateSnapshotResponse(info=_info(record))

    def list(
        self, _: snapshots_pb2.ListSnapshotsRequest, __: grpc.ServicerContext
    ) -> Iterator[snapshots_pb2.ListSnapshotsResponse]:
        records = self._snapshotter.list()
        for start in range(0, len(records), LIST_BLOCK):
            yield snapshots_pb2.ListSnapshotsResponse(info=map(_info, records[start : start + LIST_BLOCK]))

    def usage(self, request: snapshots_pb2.UsageRequest, context: grpc.ServicerContext) -> snapshots_pb2.UsageResponse:
        usage = self._snapshotter.usage(request.key, context)
        return snapshots_pb2.UsageResponse(size=usage.size, inodes=usage.inodes)

    def cleanup(self, _: snapshots_pb2.CleanupRequest, __: grpc.ServicerContext) -> Empty:
        self._snapshotter.cleanup()
        return Empty()


def handlers(service: SnapshotsService) -> grpc.GenericRpcHandler:
    """The service as gRPC wants it."""
    unary: dict[str, tuple[Callable[[Any, grpc.ServicerContext], Message], type[Message]]] = {
        "Prepare": (service.prepare, snapshots_pb2.PrepareSnapshotRequest),
        "View": (service.view, snapshots_pb2.ViewSnapshotRequest),
        "Mounts": (service.mounts, snapshots_pb2.MountsRequest),
        "Commit": (service.commit, snapshots_pb2.CommitSnapshotRequest),
        "Remove": (service.remove, snapshots_pb2.RemoveSnapshotRequest),
        "Stat": (service.stat, snapshots_pb2.StatSnapshotRequest),
        "Update": (service.update, snapshots_pb2.UpdateSnapshotRequest),
        "Usage": (service.usage, snapshots_pb2.UsageRequest),
        "Cleanup": (service.cleanup, snapshots_pb2.CleanupRequest),
    }
    methods = {
        name: grpc.unary_unary_rpc_method_handler(
            _answered(name, method),
            request_deserializer=request.FromString,
            response_serializer=_serialized,
        )
        for name, (method, request) in unary.items()
    }
    methods["List"] = grpc.unary_stream_rpc_method_handler(
        service.list,
        request_deserializer=snapshots_pb2.ListSnapshotsRequest.FromString,
        response_serializer=_serialized,
    )
    return grpc.method_handlers_generic_handler(SERVICE, methods)


def status_of(error: Exception) -> tuple[grpc.StatusCode, str]:
    """The code and the text that containerd gets for a failure."""
    code = next((code for kind, code in _CODES if isinstance(error, kind)), grpc.StatusCode.INTERNAL)
    remedy = getattr(error, "remedy", "")
    return code, f"{error} ({remedy})" if remedy else str(error)


def _answered(
    name: str, method: Callable[[Any, grpc.ServicerContext], Message]
) -> Callable[[Any, grpc.ServicerContext], Message]:
    """Turn every failure of a handler into a status; log those that are no part of the protocol."""

    def answer(request: Any, context: grpc.ServicerContext) -> Message:
        try:
            return method(request, context)
        except Exception as exc:
            code, text = status_of(exc)
            if code is grpc.StatusCode.INTERNAL:
                log.exception("%s failed", name)
            elif not isinstance(exc, _EXPECTED):
                log.warning("%s: %s", name, text)
            context.abort(code, text)
            raise

    return answer


def _serialized(message: Message) -> bytes:
    return message.SerializeToString()


def _mount(spec: MountSpec) -> mount_pb2.Mount:
    return mount_pb2.Mount(type=spec.type, source=spec.source, options=spec.options)


def _info(record: Snapshot) -> snapshots_pb2.Info:
    return snapshots_pb2.Info(
        name=record.name,
        parent=record.parent,
        kind=snapshots_pb2.Kind.Name(record.kind),
        created_at=_time(record.created_ns),
        updated_at=_time(record.updated_ns),
        labels=record.labels,
    )


def _time(nanoseconds: int) -> Timestamp:
    time = Timestamp()
    time.FromNanoseconds(nanoseconds)
    return time
