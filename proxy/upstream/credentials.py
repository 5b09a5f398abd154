"""Who we are at an upstream: the contract, and the two simple kinds."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from fastpull.config.proxy import CredentialSettings


class CredentialError(Exception):
    """Credentials could not be had. The text names the source and never holds a secret."""


@dataclass(frozen=True, slots=True)
class Credential:
    """A login. ``identity_token`` (an OAuth2 refresh token) goes before the password where both are there."""

    username: str
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)

    @property
    def basic(self) -> str:
        """The value of an ``Authorization: Basic`` header (RFC 7617)."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


class CredentialProvider(Protocol):
    """Where one upstream's login comes from.

    ``get`` may fetch and caches; raises ``CredentialError`` and nothing else. ``None`` = anonymous.
    ``reject`` is told that upstream refused what ``get`` returned: the next ``get`` asks the source again.
    """

    async def get(self) -> Credential | None: ...

    def reject(self) -> None: ...


class AnonymousProvider:
    """No login."""

    async def get(self) -> Credential | None:
        return None

    def reject(self) -> None:
        return None


class BasicProvider:
    """A user name, and a password from the settings, a file or the environment.

    The file is read for each use, so that a rotated secret (a mounted Kubernetes Secret) needs no restart.
    """

    def __init__(self, settings: CredentialSettings, environ: Mapping[str, str] | None = None) -> None:
        self._settings = settings
        self._environ = os.environ if environ is None else environ

    async def get(self) -> Credential:
        return Credential(self._settings.username, self._password())

    def reject(self) -> None:
        return None

    def _password(self) -> str:
        if path := self._settings.password_file:
            return _read_secret(path)
        if name := self._settings.password_env:
            try:
                return self._environ[name]
            except KeyError as exc:
                raise CredentialError(f"environment variable {name} (password_env) is not set") from exc
        return self._settings.password


def _read_secret(path: Path) -> str:
    try:
        return path.read_text().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "not text"
        raise CredentialError(f"password_file {path}: {reason}") from exc


def make_provider(settings: CredentialSettings, registry_host: str) -> CredentialProvider:
    """The provider that the settings ask for. Optional packages are imported only when they are needed."""
    match settings.kind:
        case "basic":
            return BasicProvider(settings)
        case "docker-config":
            from fastpull.proxy.upstream.docker_config import DockerConfigProvider

            return DockerConfigProvider(settings.docker_config, registry_host)
        case "ecr":
            from fastpull.proxy.upstream.ecr import EcrProvider

            return EcrProvider(registry_host, region=settings.region, endpoint=settings.endpoint)
        case "gar":
            from fastpull.proxy.upstream.gar import GarProvider

            return GarProvider()
        case "anonymous":
            return AnonymousProvider()
