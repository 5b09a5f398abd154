"""Logins for Amazon ECR, from AWS credentials."""

from __future__ import annotations

import asyncio
import base64
import re
import time
from typing import Any

from fastpull.proxy.upstream.credentials import Credential, CredentialError

_HOST = re.compile(r"(\d{12})\.dkr[.-]ecr(?:-fips)?\.([a-z0-9-]+)\.(?:amazonaws\.com(?:\.cn)?|on\.aws|.+)")
_RENEW_BEFORE_SECONDS = 3600.0  # of twelve hours
_KEEP_AT_LEAST_SECONDS = 300.0  # also where our clock is wrong; upstream tells when a login has ended


def account_and_region(registry_host: str) -> tuple[str, str]:
    """Both out of ``<account>.dkr.ecr.<region>.amazonaws.com``; empty for another host. Pure."""
    match = _HOST.fullmatch(registry_host)
    return (match.group(1), match.group(2)) if match else ("", "")


class EcrProvider:
    """``GetAuthorizationToken`` through botocore's chain: environment, files, web identity, instance role.

    One call in eleven hours: the API allows 20 a second for the whole account, and a fleet shares that.
    """

    def __init__(self, registry_host: str, *, region: str = "", endpoint: str = "") -> None:
        self._account, host_region = account_and_region(registry_host)
        self._region = region or host_region
        self._endpoint = endpoint
        self._client: Any = None
        self._lock = asyncio.Lock()
        self._credential: Credential | None = None
        self._renew_at = 0.0  # seconds since the epoch, as AWS counts

    async def get(self) -> Credential:
        async with self._lock:
            if self._credential is None or time.time() >= self._renew_at:
                credential, self._renew_at = await asyncio.to_thread(self._fetch)
                self._credential = credential
                return credential
            return self._credential

    def reject(self) -> None:
        self._credential = None

    def _fetch(self) -> tuple[Credential, float]:
        try:
            from botocore.exceptions import BotoCoreError, ClientError
        except ImportError as exc:
            raise CredentialError("credentials of kind ecr need the extra: pip install 'fastpull-proxy[ecr]'") from exc
        try:
            answer = self._ecr().get_authorization_token(**({"registryIds": [self._account]} if self._account else {}))
            data = answer["authorizationData"][0]
            username, _, password = base64.b64decode(data["authorizationToken"]).decode().partition(":")
            ends_at = data["expiresAt"].timestamp()
        except ClientError as exc:
            code = exc.response.get("Error", {}).get("Code", "unknown")
            raise CredentialError(f"ECR refuses GetAuthorizationToken: {code}") from exc
        except BotoCoreError as exc:
            raise CredentialError(f"ECR GetAuthorizationToken: {exc}") from exc
        except (LookupError, ValueError) as exc:
            raise CredentialError("ECR GetAuthorizationToken answered without a token") from exc
        life = ends_at - time.time()
        keep = max(life - _RENEW_BEFORE_SECONDS, life / 2, _KEEP_AT_LEAST_SECONDS)
        return Credential(username, password), time.time() + keep

    def _ecr(self) -> Any:
        if self._client is None:
            from botocore.config import Config
            from botocore.session import get_session

            self._client = get_session().create_client(
                "ecr",
                region_name=self._region or None,
                endpoint_url=self._endpoint or None,
                config=Config(connect_timeout=5, read_timeout=10, retries={"max_attempts": 2}),
            )
        return self._client
