"""A command's connection to the running daemon: JSON over its control socket."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec

from fastpull.cache.scrub import ScrubState
from fastpull.cache.wire import ErrorBody
from fastpull.fuse_client.control_messages import (
    SOCKET_NAME,
    MountAnswer,
    MountRequest,
    ReleaseRequest,
    StopRequest,
)
from fastpull.fuse_client.errors import DaemonError, StartUnknownError
from fastpull.fuse_client.start_record import StartRecord
from fastpull.fuse_client.status import NodeStatus

T = TypeVar("T")

_ANSWER_SECONDS = 120.0  # a mount fetches an image's index; an unmount may wait for reads
_MAX_ANSWER_BYTES = 64 << 20


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=_ANSWER_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class DaemonConnection:
    """Asks the daemon of one run directory. Every method raises ``DaemonError``."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / SOCKET_NAME

    @property
    def is_served(self) -> bool:
        """Whether a daemon listens."""
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(self._path))
            except OSError:
                return False
            return True

    def status(self, *, local: bool = False) -> NodeStatus:
        return self._ask("GET", f"/status?local={int(local)}", None, NodeStatus)

    def mount(self, chain_id: str, user: str, *, start: bool = False) -> Path:
        request = MountRequest(chain_id=chain_id, user=user, start=start)
        answer = self._ask("POST", "/mount", request, MountAnswer)
        return Path(answer.path)

    def last_start(self, query: str) -> StartRecord:
        """Of what the query of ``GET /start`` names. Raise ``StartUnknownError`` as well."""
        return self._ask("GET", f"/start?{query}", None, StartRecord)

    def release(self, chain_id: str, user: str) -> None:
        self._send("POST", "/release", ReleaseRequest(chain_id=chain_id, user=user))

    def stop(self, *, keep_mounts: bool = False, force: bool = False) -> None:
        self._send("POST", "/stop", StopRequest(keep_mounts=keep_mounts, force=force))

    def scrub(self, rate: int) -> Iterator[ScrubState]:
        """How far it is, until it is done, or less when the daemon ends. Who stops iterating ends the scrub."""
        connection = _UnixConnection(self._path)
        try:
            with self._translated():
                connection.request("POST", f"/scrub?rate={rate}")
                response = connection.getresponse()
                if response.status >= 400:
                    raise _refusal(response.status, response.read(_MAX_ANSWER_BYTES))
            while line := self._line(response):
                yield msgspec.json.decode(line, type=ScrubState)
        finally:
            connection.close()

    def _line(self, response: http.client.HTTPResponse) -> bytes:
        with self._translated():
            return response.readline(_MAX_ANSWER_BYTES)

    def _ask(self, method: str, path: str, message: msgspec.Struct | None, answer: type[T]) -> T:
        try:
            return msgspec.json.decode(self._send(method, path, message), type=answer)
        except msgspec.DecodeError as exc:
            raise DaemonError(
                f"the daemon at {self._path} is of another version: {exc}",
                remedy="restart it: fastpull-node stop --keep-mounts, then start it anew",
            ) from exc

    def _send(self, method: str, path: str, message: msgspec.Struct | None) -> bytes:
        connection = _UnixConnection(self._path)
        try:
            with self._translated():
                connection.request(method, path, None if message is None else msgspec.json.encode(message))
                response = connection.getresponse()
                status, data = response.status, response.read(_MAX_ANSWER_BYTES)
        finally:
            connection.close()
        if status == 404 and path.startswith("/start"):
            raise StartUnknownError(str(_refusal(status, data)))
        if status >= 400:
            raise _refusal(status, data)
        return data

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, ConnectionRefusedError) as exc:
            raise DaemonError(
                f"no daemon listens at {self._path}",
                remedy="start one with `fastpull-node serve`, or name its settings with --config",
            ) from exc
        except PermissionError as exc:
            raise DaemonError(f"{self._path}: permission denied", remedy="run this as root") from exc
        except (OSError, http.client.HTTPException) as exc:
            raise DaemonError(f"the daemon at {self._path} does not answer: {exc}") from exc


def _refusal(status: int, data: bytes) -> DaemonError:
    try:
        body = msgspec.json.decode(data, type=ErrorBody)
    except msgspec.DecodeError:
        return DaemonError(f"the daemon answers {status}", remedy="look into its log")
    return DaemonError(body.error, remedy=body.remedy)
