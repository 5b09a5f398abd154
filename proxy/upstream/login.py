"""What to send as ``Authorization`` to one upstream, learnt from its challenges."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from yarl import URL

from fastpull.proxy.errors import DeniedError, UpstreamUnavailableError
from fastpull.proxy.upstream.challenges import Challenge, parse_challenges
from fastpull.proxy.upstream.credentials import Credential, CredentialError, CredentialProvider
from fastpull.proxy.upstream.realms import check_realm
from fastpull.proxy.upstream.tokens import TokenCache, TokenScope


class Login:
    """Basic or bearer, as upstream demands.

    The last challenge is only a hint that saves the next request a round trip: every 401 is read anew, because
    realms move (nvcr.io's does when a token ends).
    """

    def __init__(
        self,
        upstream: str,
        url: URL,
        token_hosts: Collection[str],
        provider: CredentialProvider,
        tokens: TokenCache,
    ) -> None:
        self._upstream = upstream
        self._url = url
        self._token_hosts = token_hosts
        self._provider = provider
        self._tokens = tokens
        self._bearer: tuple[URL, str] | None = None
        self._is_basic = False

    async def authorization(self, repository: str) -> str | None:
        """The header for a pull from ``repository``, ``None`` while no challenge was seen.

        Raise ``DeniedError``, or a transient error when the login can not be had.
        """
        if self._bearer is not None:
            scope = self._scope(repository)
            token = self._tokens.peek(scope) or await self._tokens.get(scope, await self._credential())
            return f"Bearer {token}"
        if self._is_basic and (credential := await self._credential()) is not None:
            return credential.basic
        return None

    async def refused(self, headers: Iterable[str], repository: str, sent: str | None) -> None:
        """Upstream answered 401 (or 403) to ``sent``: forget that, and learn what it wants instead.

        ``headers`` are the WWW-Authenticate headers; none = only forget. Raise ``DeniedError`` when
        there is no way to log in, ``UpstreamForbiddenError`` for a realm that is not to be trusted.
        """
        self._forget(repository, sent)
        challenges = parse_challenges(headers)
        if not challenges:
            return
        if (bearer := _first(challenges, "bearer")) and (realm := bearer.parameters.get("realm")):
            self._bearer = (
                check_realm(realm, self._url, self._token_hosts),
                bearer.parameters.get("service", ""),
            )
            self._is_basic = False
        elif _first(challenges, "basic"):
            self._bearer = None
            self._is_basic = True
            if await self._credential() is None:
                raise DeniedError(self._upstream, repository, "it wants a user name and a password")
        else:
            schemes = ", ".join(sorted({challenge.scheme for challenge in challenges}))
            raise DeniedError(self._upstream, repository, f"it wants a login that we do not speak ({schemes[:100]})")

    def _forget(self, repository: str, sent: str | None) -> None:
        if sent is None:
            return
        scheme, _, value = sent.partition(" ")
        if scheme == "Bearer" and self._bearer is not None:
            self._tokens.drop(self._scope(repository), value)
        elif scheme == "Basic":
            self._provider.reject()

    def _scope(self, repository: str) -> TokenScope:
        assert self._bearer is not None
        realm, service = self._bearer
        # Always our own scope: GHCR's challenge carries a placeholder, others carry none.
        return TokenScope(realm, service, f"repository:{repository}:pull")

    async def _credential(self) -> Credential | None:
        try:
            return await self._provider.get()
        except CredentialError as exc:
            raise UpstreamUnavailableError(f"no login for {self._upstream}: {exc}") from exc


def _first(challenges: list[Challenge], scheme: str) -> Challenge | None:
    return next((challenge for challenge in challenges if challenge.scheme == scheme), None)
