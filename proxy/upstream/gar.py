"""Logins for Google Artifact Registry and Container Registry, from Google credentials."""

from __future__ import annotations

import asyncio
from typing import Any

from fastpull.proxy.upstream.credentials import Credential, CredentialError

_SCOPES = ("https://www.googleapis.com/auth/devstorage.read_only", "https://www.googleapis.com/auth/cloud-platform")
USER = "oauth2accesstoken"


class GarProvider:
    """An access token through google-auth's chain: key file, gcloud's login, workload identity, metadata server."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._credentials: Any = None

    async def get(self) -> Credential:
        async with self._lock:
            token = await asyncio.to_thread(self._token)
        return Credential(USER, token)

    def reject(self) -> None:
        self._credentials = None

    def _token(self) -> str:
        try:
            import google.auth
            from google.auth.exceptions import GoogleAuthError
            from google.auth.transport.requests import Request
        except ImportError as exc:
            raise CredentialError("credentials of kind gar need the extra: pip install 'fastpull-proxy[gar]'") from exc
        try:
            if self._credentials is None:
                self._credentials, _project = google.auth.default(scopes=_SCOPES)
            if not self._credentials.valid:  # google-auth calls a token stale some minutes before it ends
                self._credentials.refresh(Request())
        except GoogleAuthError as exc:
            raise CredentialError(f"Google credentials: {exc}") from exc
        return str(self._credentials.token)
