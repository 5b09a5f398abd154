"""Logins from settings, files, the environment and docker's configuration."""

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest

from fastpull.config.proxy import CredentialSettings
from fastpull.proxy.upstream.credentials import BasicProvider, Credential, CredentialError, make_provider
from fastpull.proxy.upstream.docker_config import DockerConfigProvider, registry_keys


def config(path: Path, **content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def auth(text: str) -> dict[str, str]:
    return {"auth": base64.b64encode(text.encode()).decode()}


def helper(folder: Path, name: str, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = folder / f"docker-credential-{name}"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_a_secret_is_in_no_repr() -> None:
    credential = Credential("user", "s3cret", "t0ken")
    settings = CredentialSettings(kind="basic", username="user", password="s3cret")
    for text in (repr(credential), str(credential), repr(settings), repr({"x": settings})):
        assert "s3cret" not in text
        assert "t0ken" not in text


def test_basic() -> None:
    assert Credential("Aladdin", "open sesame").basic == "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="  # RFC 7617


async def test_a_password_file_is_read_each_time(tmp_path: Path) -> None:
    """A rotated secret needs no restart."""
    path = tmp_path / "password"
    provider = BasicProvider(CredentialSettings(kind="basic", username="u", password_file=path))
    path.write_text("one\n")
    assert (await provider.get()).password == "one"
    path.write_text("two")
    assert (await provider.get()).password == "two"
    path.unlink()
    with pytest.raises(CredentialError, match="password"):
        await provider.get()


async def test_a_password_from_the_environment() -> None:
    settings = CredentialSettings(kind="basic", username="u", password_env="SECRET")
    assert (await BasicProvider(settings, {"SECRET": "x"}).get()).password == "x"
    with pytest.raises(CredentialError, match="SECRET"):
        await BasicProvider(settings, {}).get()


@pytest.mark.parametrize(
    ("auths", "host", "expected"),
    [
        ({"ghcr.io": auth("u:p")}, "ghcr.io", ("u", "p", "")),
        ({"https://ghcr.io": auth("u:p:q")}, "ghcr.io", ("u", "p:q", "")),
        ({"https://index.docker.io/v1/": auth("u:p")}, "registry-1.docker.io", ("u", "p", "")),
        ({"ghcr.io": {"username": "u", "password": "p"}}, "ghcr.io", ("u", "p", "")),
        ({"ghcr.io": {"auth": "", "identitytoken": "t"}}, "ghcr.io", ("", "", "t")),
        ({"other.io": auth("u:p")}, "ghcr.io", None),
        ({"ghcr.io": {}}, "ghcr.io", None),
        ({}, "ghcr.io", None),
    ],
)
async def test_logins_of_docker(
    auths: dict[str, Any], host: str, expected: tuple[str, ...] | None, tmp_path: Path
) -> None:
    path = config(tmp_path / "config.json", auths=auths)
    provider = make_provider(CredentialSettings(kind="docker-config", docker_config=path), host)
    assert await provider.get() == (Credential(*expected) if expected else None)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"auths": 5}', '{"auths":{"ghcr.io":{"auth":"###"}}}', "\udcff"])
async def test_a_broken_docker_config_is_told(content: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(CredentialError, match="docker_config"):
        await DockerConfigProvider(path, "ghcr.io").get()
    with pytest.raises(CredentialError, match="docker_config"):
        await DockerConfigProvider(tmp_path / "none", "ghcr.io").get()


async def test_a_helper_is_asked_for_its_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answer is kept for a while, and asked for again when upstream refuses it."""
    log = tmp_path / "log"
    script = f"""read host; echo "$1 $host" >> {log}; echo '{{"Username":"u","Secret":"p"}}'"""
    helper(tmp_path, "one", script, monkeypatch)
    path = config(tmp_path / "config.json", credHelpers={"ghcr.io": "one"}, auths={"ghcr.io": auth("x:y")})
    provider = DockerConfigProvider(path, "ghcr.io")
    for _ in range(3):
        assert await provider.get() == Credential("u", "p")
    assert log.read_text() == "get ghcr.io\n"
    provider.reject()
    await provider.get()
    assert log.read_text() == "get ghcr.io\n" * 2


async def test_a_store_that_has_no_login_leaves_the_file_its_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper(tmp_path, "store", "echo 'credentials not found in native keychain'; exit 1", monkeypatch)
    path = config(tmp_path / "config.json", credsStore="store", auths={"ghcr.io": auth("u:p")})
    assert await DockerConfigProvider(path, "ghcr.io").get() == Credential("u", "p")


async def test_a_helper_may_give_an_identity_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper(tmp_path, "token", """echo '{"Username":"<token>","Secret":"t"}'""", monkeypatch)
    path = config(tmp_path / "config.json", credsStore="token")
    assert await DockerConfigProvider(path, "ghcr.io").get() == Credential("", "", "t")


@pytest.mark.parametrize(
    ("name", "script", "message"),
    [
        ("fails", "echo secret-text; exit 3", "status 3"),
        ("nonsense", "echo hello", "protocol"),
        ("../evil", "true", "no name"),
        ("absent", None, "can not be run"),
    ],
)
async def test_a_helper_that_fails_is_told_without_its_output(
    name: str, script: str | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if script is not None and "/" not in name:
        helper(tmp_path, name, script, monkeypatch)
    path = config(tmp_path / "config.json", credsStore=name)
    with pytest.raises(CredentialError, match=message) as caught:
        await DockerConfigProvider(path, "ghcr.io").get()
    assert "secret-text" not in str(caught.value)


async def test_a_helper_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastpull.proxy.upstream import docker_config

    monkeypatch.setattr(docker_config, "_TIMEOUT_SECONDS", 0.2)
    helper(tmp_path, "hangs", f"echo $$ > {tmp_path}/pid; exec sleep 600", monkeypatch)
    path = config(tmp_path / "config.json", credsStore="hangs")
    with pytest.raises(CredentialError, match="did not answer"):
        await DockerConfigProvider(path, "ghcr.io").get()
    pid = tmp_path / "pid"
    assert not pid.exists() or not Path(f"/proc/{pid.read_text().strip()}").exists()


def test_docker_hub_has_many_names() -> None:
    assert registry_keys("registry-1.docker.io")[0] == "https://index.docker.io/v1/"
    assert registry_keys("ghcr.io")[0] == "ghcr.io"
