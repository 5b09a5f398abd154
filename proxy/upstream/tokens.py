"""Bearer tokens of one upstream: fetched once, shared, renewed before they end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import aiohttp
import msgspec
from yarl import URL

from fastpull.cache.single_flight import SingleFlight
from fastpull.cache.tasks import Tasks
from fastpull.proxy.errors import (
    DeniedError,
    MirrorError,
    ThrottledError,
    UpstreamInvalidError,
    UpstreamUnavailableError,
)
from fastpull.proxy.upstream.credentials import Credential
from fastpull.proxy.upstream.foreign_json import read_json
from fastpull.proxy.upstream.retry_after import parse_retry_after

log = logging.getLogger(__name__)

CLIENT_ID = "fastpull-proxy"

_DEFAULT_LIFE_SECONDS = 60.0  # "Token Authentication": for compatibility, never less than 60 seconds
_RENEW_AFTER = 0.8  # of its life; the rest is for transfers that have begun
_MAX_BODY = 256 * 1024
_MAX_TOKENS = 4096
_TIMEOUT_SECONDS = 10.0


class _TokenAnswer(msgspec.Struct):
    token: str = ""
    access_token: str = ""
    expires_in: float | None = None


@dataclass(frozen=True, slots=True)
class TokenScope:
    """What a token is for. Tokens are never shared between upstreams: each upstream has its own ``TokenCache``."""

    realm: URL
    service: str
    scope: str


@dataclass(frozen=True, slots=True)
class _Token:
    value: str = field(repr=False)
    renew_at: float
    ends_at: float


class TokenCache:
    """Tokens by realm, service and scope.

    Life is measured on the monotonic clock from before the request was sent, so neither a clock that jumps
    nor one that differs from the server's makes a token look valid for longer than it is.
    """

    def __init__(
        self,
        upstream: str,
        session: aiohttp.ClientSession,
        tasks: Tasks,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._upstream = upstream
        self._session = session
        self._clock = clock
        self._tokens: dict[TokenScope, _Token] = {}
        self._flights: SingleFlight[TokenScope, _Token | MirrorError] = SingleFlight(tasks)

    def peek(self, scope: TokenScope) -> str | None:
        """The token at hand, unless it is about to end."""
        token = self._tokens.get(scope)
        return token.value if token is not None and self._clock() < token.renew_at else None

    def drop(self, scope: TokenScope, value: str) -> None:
        """Forget a token that upstream refused, unless another one took its place meanwhile."""
        token = self._tokens.get(scope)
        if token is not None and token.value == value:
            del self._tokens[scope]

    async def get(self, scope: TokenScope, credential: Credential | None) -> str:
        """A token that is good now. A token endpoint that fails is no reason to give up one that still lives.

        Raise ``DeniedError``, ``ThrottledError``, ``UpstreamUnavailableError``, ``UpstreamInvalidError``.
        """
        if value := self.peek(scope):
            return value
        outcome = await self._flights.get(scope, lambda: self._outcome(scope, credential))
        if isinstance(outcome, _Token):
            return outcome.value
        old = self._tokens.get(scope)
        if outcome.is_transient and old is not None and self._clock() < old.ends_at:
            return old.value
        raise outcome.with_traceback(None)

    async def _outcome(self, scope: TokenScope, credential: Credential | None) -> _Token | MirrorError:
        """``_fetch``, with an error as a value: whoever waits reports it, so the task must not."""
        try:
            return await self._fetch(scope, credential)
        except MirrorError as exc:
            return exc

    async def _fetch(self, scope: TokenScope, credential: Credential | None) -> _Token:
        started = self._clock()
        for attempt in (1, 2):
            try:
                answer = await self._ask(scope, credential)
                break
            except UpstreamUnavailableError:
                if attempt == 2:
                    raise
                await asyncio.sleep(0.2)
        else:  # pragma: no cover - the loop returns or raises
            raise AssertionError
        value = answer.token or answer.access_token
        life = max(answer.expires_in or _DEFAULT_LIFE_SECONDS, _DEFAULT_LIFE_SECONDS)
        token = _Token(value, started + life * _RENEW_AFTER, started + life)
        if len(self._tokens) >= _MAX_TOKENS:
            self._tokens.pop(next(iter(self._tokens)))
        self._tokens[scope] = token
        return token

    async def _ask(self, scope: TokenScope, credential: Credential | None) -> _TokenAnswer:
        where = f"the token service {scope.realm.host} of {self._upstream}"
        try:
            async with (
                asyncio.timeout(_TIMEOUT_SECONDS),
                self._request(scope, credential) as response,
            ):
                body = await response.content.read(_MAX_BODY)
                while len(body) < _MAX_BODY and (more := await response.content.read(_MAX_BODY - len(body))):
                    body += more
                status, headers = response.status, response.headers
        except (aiohttp.ClientError, TimeoutError, OSError) as exc:
            raise UpstreamUnavailableError(f"{where} can not be reached: {str(exc) or 'timeout'}") from exc
        if status == 429:
            raise ThrottledError(where, "", parse_retry_after(headers.get("Retry-After")))
        if status in (400, 401, 403):
            raise DeniedError(self._upstream, scope.scope or "a token", f"{where} answered {status}")
        if status >= 500:
            raise UpstreamUnavailableError(f"{where} answered {status}")
        answer = read_json(body, _TokenAnswer) or _TokenAnswer()
        value = answer.token or answer.access_token
        if status != 200 or not value or not value.isascii() or not value.isprintable():
            raise UpstreamInvalidError(f"{where} answered {status} without a token")
        return answer

    def _request(self, scope: TokenScope, credential: Credential | None) -> Any:
        if credential is not None and credential.identity_token:
            # distribution docs, "OAuth2 Token Authentication": a refresh token goes by POST.
            form = {
                "grant_type": "refresh_token",
                "refresh_token": credential.identity_token,
                "service": scope.service,
                "client_id": CLIENT_ID,
                "scope": scope.scope,
            }
            return self._session.post(scope.realm, data=form, allow_redirects=False)
        query = [("service", scope.service)] if scope.service else []
        if scope.scope:
            query.append(("scope", scope.scope))
        headers = {"Authorization": credential.basic} if credential is not None else {}
        return self._session.get(scope.realm.extend_query(query), headers=headers, allow_redirects=False)
