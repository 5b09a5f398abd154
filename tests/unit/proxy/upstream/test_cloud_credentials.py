"""Logins from AWS and Google."""

import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from fastpull.config.proxy import CredentialSettings
from fastpull.proxy.upstream.credentials import CredentialError, make_provider
from fastpull.proxy.upstream.ecr import account_and_region

ECR_HOST = "123456789012.dkr.ecr.eu-central-1.amazonaws.com"


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        (ECR_HOST, ("123456789012", "eu-central-1")),
        ("123456789012.dkr.ecr-fips.us-gov-west-1.amazonaws.com", ("123456789012", "us-gov-west-1")),
        ("123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn", ("123456789012", "cn-north-1")),
        ("123456789012.dkr-ecr.us-east-1.on.aws", ("123456789012", "us-east-1")),
        ("public.ecr.aws", ("", "")),
        ("ghcr.io", ("", "")),
    ],
)
def test_an_ecr_host_names_account_and_region(host: str, expected: tuple[str, str]) -> None:
    assert account_and_region(host) == expected


async def test_ecr_gives_a_login_and_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """One call of GetAuthorizationToken, until upstream refuses what it gave."""
    import moto
    from botocore.client import BaseClient

    calls = []
    call = BaseClient._make_api_call
    monkeypatch.setattr(
        BaseClient,
        "_make_api_call",
        lambda self, name, kwargs: calls.append((name, kwargs)) or call(self, name, kwargs),
    )
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    with moto.mock_aws():
        provider = make_provider(CredentialSettings(kind="ecr"), ECR_HOST)
        credential = await provider.get()
        assert credential is not None
        assert credential.username == "AWS"
        assert credential.password
        assert await provider.get() is credential
        provider.reject()
        await provider.get()
    assert calls == [("GetAuthorizationToken", {"registryIds": ["123456789012"]})] * 2


@pytest.mark.parametrize("environment", [{}, {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "not-shown"}])
async def test_ecr_that_can_not_be_asked_is_told(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    provider = make_provider(CredentialSettings(kind="ecr", endpoint="http://127.0.0.1:1"), ECR_HOST)
    with pytest.raises(CredentialError, match="ECR") as caught:
        await provider.get()
    assert "not-shown" not in str(caught.value)


class MetadataServer(http.server.BaseHTTPRequestHandler):
    """What a machine in Google's cloud asks for its token."""

    asked: list[str]
    life = 3600

    def do_GET(self) -> None:
        self.asked.append(self.path)
        is_right = self.headers.get("Metadata-Flavor") == "Google"
        body: Any = "0.1/\n"
        if "token" in self.path:
            body = json.dumps({"access_token": f"t{len(self.asked)}", "expires_in": self.life, "token_type": "Bearer"})
        elif "service-accounts" in self.path:
            body = json.dumps({"email": "robot@example", "scopes": ["x"], "aliases": ["default"]})
        elif "project" in self.path:
            body = "project"
        elif "universe" in self.path:
            body = "googleapis.com"
        self.send_response(200 if is_right else 403)
        self.send_header("Metadata-Flavor", "Google")
        self.send_header("Content-Type", "application/json" if body.startswith("{") else "application/text")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        return None


@pytest.fixture
def metadata_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Iterator[type[MetadataServer]]:
    class Handler(MetadataServer):
        asked = []

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    address = f"127.0.0.1:{server.server_port}"
    for name in ("GCE_METADATA_HOST", "GCE_METADATA_ROOT", "GCE_METADATA_IP"):
        monkeypatch.setenv(name, address)
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    import importlib

    from google.auth.compute_engine import _metadata

    importlib.reload(_metadata)  # it reads the environment once
    try:
        yield Handler
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        monkeypatch.undo()
        importlib.reload(_metadata)


async def test_gar_gives_an_access_token(metadata_server: type[MetadataServer]) -> None:
    """From the metadata server where there is one; kept while it is good."""
    provider = make_provider(CredentialSettings(kind="gar"), "europe-docker.pkg.dev")
    credential = await provider.get()
    assert credential is not None
    assert credential.username == "oauth2accesstoken"
    assert credential.password.startswith("t")
    assert await provider.get() == credential
    provider.reject()
    assert await provider.get() != credential


async def test_gar_renews_a_token_that_ends(metadata_server: type[MetadataServer]) -> None:
    metadata_server.life = 1
    provider = make_provider(CredentialSettings(kind="gar"), "europe-docker.pkg.dev")
    first, second = await provider.get(), await provider.get()
    assert first != second


async def test_gar_without_credentials_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    with pytest.raises(CredentialError, match="Google"):
        await make_provider(CredentialSettings(kind="gar"), "europe-docker.pkg.dev").get()
