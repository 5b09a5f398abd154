"""Logins out of docker's ``config.json``, with its credential helpers."""

from __future__ import annotations

import asyncio
import base64
import binascii
import os
import re
import time
from pathlib import Path

import msgspec

from fastpull.proxy.upstream.credentials import Credential, CredentialError
from fastpull.proxy.upstream.foreign_json import read_json

_TIMEOUT_SECONDS = 20.0
_MAX_OUTPUT = 256 * 1024
_HELPER_LIFE_SECONDS = 300.0  # a helper may hand out logins that end; cloud ones last an hour and more
_HELPER_NAME = re.compile(r"[A-Za-z0-9._-]+")
_TOKEN_USER = "<token>"  # noqa: S105 - docker's mark for "the secret is an identity token"
_DOCKER_HUB_KEY = "https://index.docker.io/v1/"
_DOCKER_HUB_HOSTS = frozenset({"registry-1.docker.io", "docker.io", "index.docker.io"})


class _Auth(msgspec.Struct):
    auth: str = ""
    username: str = ""
    password: str = ""
    identitytoken: str = ""


class _DockerConfig(msgspec.Struct):
    auths: dict[str, _Auth] = {}
    credsStore: str = ""  # noqa: N815 - docker's name
    credHelpers: dict[str, str] = {}  # noqa: N815


class _HelperAnswer(msgspec.Struct):
    Username: str = ""
    Secret: str = ""


class DockerConfigProvider:
    """The login that ``docker login`` left for a registry. The file is read anew for each login.

    Order as docker's: a helper for this registry, the store for all, then ``auths``.
    """

    def __init__(self, path: Path | None, registry_host: str) -> None:
        self._path = path or Path(os.environ.get("DOCKER_CONFIG", Path("~/.docker").expanduser())) / "config.json"
        self._keys = registry_keys(registry_host)
        self._cached: tuple[float, Credential | None] | None = None

    async def get(self) -> Credential | None:
        if self._cached is not None and time.monotonic() < self._cached[0]:
            return self._cached[1]
        config = self._read()
        helper = next((config.credHelpers[key] for key in self._keys if key in config.credHelpers), config.credsStore)
        credential = None
        if helper:
            credential = await self._ask_helpers(helper)
            self._cached = (time.monotonic() + _HELPER_LIFE_SECONDS, credential)
        return credential or from_auths(config.auths, self._keys, self._path)

    def reject(self) -> None:
        self._cached = None

    def _read(self) -> _DockerConfig:
        try:
            config = read_json(self._path.read_bytes(), _DockerConfig)
        except OSError as exc:
            raise CredentialError(f"docker_config {self._path}: {exc.strerror}") from exc
        if config is None:
            raise CredentialError(f"docker_config {self._path} is not docker's config.json")
        return config

    async def _ask_helpers(self, helper: str) -> Credential | None:
        for key in self._keys:
            if (credential := await _ask_helper(helper, key)) is not None:
                return credential
        return None


def registry_keys(registry_host: str) -> list[str]:
    """The names under which docker may have filed a registry, most likely first. Pure."""
    if registry_host in _DOCKER_HUB_HOSTS:
        return [_DOCKER_HUB_KEY, "index.docker.io", "docker.io", "registry-1.docker.io"]
    return [registry_host, f"https://{registry_host}", f"https://{registry_host}/v1/", f"https://{registry_host}/v2/"]


def from_auths(auths: dict[str, _Auth], keys: list[str], path: Path) -> Credential | None:
    """Pure. Raise ``CredentialError`` for an entry that can not be read."""
    entry = next((auths[key] for key in keys if key in auths), None)
    if entry is None:
        return None
    username, password = entry.username, entry.password
    if entry.auth:
        try:
            decoded = base64.b64decode(entry.auth, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            raise CredentialError(f"docker_config {path}: auth of {keys[0]} is not base64") from None
        username, _, password = decoded.partition(":")
        password = password.rstrip("\0")
    if not (username or password or entry.identitytoken):
        return None
    return Credential(username, password, entry.identitytoken)


async def _ask_helper(helper: str, key: str) -> Credential | None:
    """Run ``docker-credential-<helper> get`` (docker docs, "Credential helper protocol")."""
    if not _HELPER_NAME.fullmatch(helper):
        raise CredentialError(f"{helper[:40]!r} is no name of a credential helper")
    command = f"docker-credential-{helper}"
    try:
        process = await asyncio.create_subprocess_exec(
            command,
            "get",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
    except OSError as exc:
        raise CredentialError(f"{command} can not be run: {exc.strerror}") from exc
    try:
        async with asyncio.timeout(_TIMEOUT_SECONDS):
            output, _ = await process.communicate(key.encode())
    except TimeoutError as exc:
        raise CredentialError(f"{command} did not answer within {_TIMEOUT_SECONDS:g} s") from exc
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        if b"not found" in output[:1000].lower():
            return None
        raise CredentialError(f"{command} failed with status {process.returncode}")
    answer = read_json(output[:_MAX_OUTPUT], _HelperAnswer)
    if answer is None:
        raise CredentialError(f"{command} did not answer as the protocol has it")
    if answer.Username == _TOKEN_USER:
        return Credential("", "", answer.Secret)
    return Credential(answer.Username, answer.Secret)
