"""A command's connection to the running proxy: JSON over one kept-alive HTTP connection."""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar
from urllib.parse import urlencode, urlsplit

import msgspec

from fastpull.cache.wire import ErrorBody, Message
from fastpull.proxy.cli.errors import CommandError, UsageError

T = TypeVar("T")

_MAX_ANSWER_BYTES = 256 * 2**20


class ProxyAwayError(CommandError):
    """Nobody answers at the address, or the connection broke."""


class NotFoundError(CommandError):
    """The proxy answers 404."""


class ProxyConnection:
    """Speak ``/v1`` to one proxy. Not safe to share between threads.

    Plain ``http.client``: a command that lives for 100 ms should not spend 200 of them on importing
    an async stack, and the environment's HTTP proxies do not apply to a service inside the cluster.
    """

    def __init__(
        self,
        url: str,
        *,
        ca: Path | None = None,
        certificate: Path | None = None,
        key: Path | None = None,
        timeout_seconds: float = 60.0,
    ) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
            raise UsageError(f"{url!r} is no address of a proxy", "write for example http://127.0.0.1:5050")
        self.url = f"{parts.scheme}://{parts.netloc}"
        if parts.scheme == "https":
            try:
                context = ssl.create_default_context(cafile=str(ca) if ca else None)
                if certificate:
                    context.load_cert_chain(certificate, key)
            except (OSError, ssl.SSLError) as exc:
                raise CommandError(f"can not read the TLS files: {exc}", "check --ca, --cert and --key") from exc
            self._http: http.client.HTTPConnection = http.client.HTTPSConnection(
                parts.hostname, port, timeout=timeout_seconds, context=context
            )
        else:
            self._http = http.client.HTTPConnection(parts.hostname, port, timeout=timeout_seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._http.close()

    def get(self, path: str, answer: type[T], **query: str) -> T:
        return self._json("GET", path, query, None, answer)

    def post(self, path: str, message: Message, answer: type[T], **query: str) -> T:
        return self._json("POST", path, query, msgspec.json.encode(message), answer)

    def put(self, path: str, body: bytes, answer: type[T], **query: str) -> T:
        return self._json("PUT", path, query, body, answer)

    def delete(self, path: str, answer: type[T], **query: str) -> T:
        return self._json("DELETE", path, query, None, answer)

    def lines(self, path: str, answer: type[T], **query: str) -> Iterator[T]:
        """POST, and give each line of the answer as it comes; fewer than the proxy meant to send when it ends.

        Raise ``ProxyAwayError``, ``NotFoundError``, or ``CommandError`` with what the proxy said.
        """
        target = f"{path}?{urlencode(query)}" if query else path
        response = None
        try:
            self._http.request("POST", target)
            response = self._http.getresponse()
            if response.status >= 400:
                raise self._refusal(response.status, response.read(_MAX_ANSWER_BYTES))
            while line := response.readline(_MAX_ANSWER_BYTES):
                yield msgspec.json.decode(line, type=answer)
        except (OSError, http.client.HTTPException, msgspec.DecodeError) as exc:
            away = "no proxy answers at" if response is None else "the answer ended too early, from"
            raise ProxyAwayError(
                f"{away} {self.url}: {getattr(exc, 'strerror', None) or str(exc) or type(exc).__name__}",
                "start one with `fastpull-proxy serve`, or name it with --proxy URL",
            ) from exc
        finally:
            self._http.close()  # who leaves early says so

    def _json(self, method: str, path: str, query: Mapping[str, str], body: bytes | None, answer: type[T]) -> T:
        """Raise ``ProxyAwayError``, ``NotFoundError``, or ``CommandError`` with what the proxy said."""
        target = f"{path}?{urlencode(query)}" if query else path
        status, data = self._exchange(method, target, body)
        if status >= 400:
            raise self._refusal(status, data)
        try:
            return msgspec.json.decode(data, type=answer)
        except msgspec.DecodeError as exc:
            raise CommandError(
                f"{self.url} does not speak this version's language: {exc}",
                "check that --proxy names a fastpull-proxy of the same version",
            ) from exc

    def _exchange(self, method: str, target: str, body: bytes | None) -> tuple[int, bytes]:
        headers = {"Content-Type": "application/json"} if body is not None else {}
        try:
            try:
                self._http.request(method, target, body, headers)
                response = self._http.getresponse()
            except (http.client.BadStatusLine, BrokenPipeError, ConnectionResetError):
                self._http.close()  # an idle connection that the other side has closed meanwhile: once more
                self._http.request(method, target, body, headers)
                response = self._http.getresponse()
            return response.status, response.read(_MAX_ANSWER_BYTES)
        except ssl.SSLError as exc:
            self._http.close()
            raise ProxyAwayError(
                f"TLS with {self.url} failed: {exc.reason or exc}", "check the address, --ca, --cert and --key"
            ) from exc
        except (OSError, http.client.HTTPException) as exc:
            self._http.close()
            reason = getattr(exc, "strerror", None) or str(exc) or type(exc).__name__
            raise ProxyAwayError(
                f"no proxy answers at {self.url}: {reason}",
                "start one with `fastpull-proxy serve`, or name it with --proxy URL",
            ) from exc

    def _refusal(self, status: int, data: bytes) -> CommandError:
        kind = NotFoundError if status == 404 else CommandError
        try:
            body = msgspec.json.decode(data, type=ErrorBody)
        except msgspec.DecodeError:
            return kind(f"{self.url} answers {status}", "check that --proxy names a fastpull-proxy")
        return kind(body.error, body.remedy)
