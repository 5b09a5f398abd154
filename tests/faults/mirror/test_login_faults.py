"""Faults of a registry's login while an image is pulled."""

import random
from pathlib import Path
from typing import Any

import pytest
from fakes.faults import Body, CloseBeforeHead, Slowly, StallAfter, Status, revoke_tokens
from fakes.mirror import running_mirror, settings_for
from fakes.registry import FakeRegistry, Fault, serve

from fastpull.config.proxy import CredentialSettings, ProxySettings, UpstreamSettings

BLOB = random.Random(5).randbytes(300_000)
GO_ELSEWHERE = {403, 404, 503}


def settings(tmp_path: Path, registry: FakeRegistry, *, password: str = "", **mirror: Any) -> ProxySettings:
    login = CredentialSettings()
    if registry.auth in ("basic", "bearer-private"):
        login = CredentialSettings(kind="basic", username=registry.username, password=password or registry.password)
    upstream = UpstreamSettings(url=registry.url, credentials=login, redirect_private=True)
    return settings_for(tmp_path, {"r.test": upstream}, range_bytes=64 * 1024, **mirror)


def row(name: str, status: int, *faults: Fault, always: Fault | None = None, **options: Any) -> Any:
    return pytest.param(faults, always, status, options, id=name)


@pytest.mark.fault(
    "registry: every kind of bad answer of a token server",
    done="status codes, cuts, lies",
    promised="the pull works, or the client goes elsewhere",
)
@pytest.mark.parametrize(
    ("faults", "always", "status", "options"),
    [
        row("nothing", 200),
        row("500-once", 200, Status(500)),
        row("500-always", 503, always=Status(500)),
        row("429", 503, always=Status(429, {"Retry-After": "5"})),
        row("401", 403, always=Status(401)),
        row("400", 403, always=Status(400)),
        row("404", 503, always=Status(404)),
        row("redirect", 503, always=Status(302, {"Location": "http://127.0.0.2/"})),
        row("closed-once", 200, CloseBeforeHead()),
        row("reset-always", 503, always=CloseBeforeHead(reset=True)),
        row("slow", 200, Slowly(0.3)),
        row("silent", 503, always=StallAfter(None), answer_timeout_seconds=0.5),
        row("html", 503, always=Body(b"<html>")),
        row("no-token", 503, always=Body(b"{}", "application/json")),
        row("empty-token", 503, always=Body(b'{"token":""}', "application/json")),
        row("token-with-line-break", 503, always=Body(b'{"token":"a\\r\\nX: y"}', "application/json")),
        row("token-that-is-no-text", 503, always=Body(b'{"token":5}', "application/json")),
        row("a-token-that-upstream-refuses", 403, always=Body(b'{"token":"wrong"}', "application/json")),
        row("a-wrong-token-once", 200, Body(b'{"token":"wrong"}', "application/json")),
        row("negative-life", 200, always=None, token_life=-5),
        row("no-life", 200, always=None, token_life=None),
        row("access_token", 200, always=None, token_field="access_token"),
        row("realm-of-a-stranger", 403, always=None, realm="https://evil.example/token"),
        row("realm-with-user", 403, always=None, realm="http://a:b@127.0.0.1/token"),
        row("realm-that-is-no-url", 403, always=None, realm="http://[/"),
        row("realm-without-scheme", 403, always=None, realm="/token"),
        row("realm-in-a-file", 403, always=None, realm="file:///etc/shadow"),
    ],
)
async def test_a_login_works_or_sends_elsewhere(
    faults: tuple[Fault, ...], always: Fault | None, status: int, options: dict[str, Any], tmp_path: Path
) -> None:
    """A token service that fails is an outage (503), one that refuses is a refusal (403), never a missing image;
    and no answer or log line carries the password.
    """
    mirror_options = {name: options.pop(name) for name in list(options) if name.endswith("seconds")}
    async with FakeRegistry(auth="bearer-private", password="s3cret") as registry:
        for name, value in options.items():
            setattr(registry, name, value)
        registry.add_image("app", "v1", BLOB)
        registry.script("token", *faults)
        registry.always("token", always)
        async with running_mirror(settings(tmp_path, registry, **mirror_options)) as mirror:
            got = await mirror.get("app/manifests/v1?ns=r.test")
            assert got.status == status
            assert b"s3cret" not in got.body


async def test_tokens_are_shared_and_kept(tmp_path: Path) -> None:
    """One token for a repository, whatever is pulled from it, asked for with our own scope."""
    async with FakeRegistry(auth="bearer") as registry:
        registry.add_image("app", "v1", BLOB, BLOB[::-1])
        async with running_mirror(settings(tmp_path, registry)) as mirror:
            await mirror.get("app/manifests/v1?ns=r.test")
            for digest, data in registry.blobs.items():
                assert (await mirror.get(f"app/blobs/{digest}?ns=r.test")).body == data
        tokens = [seen for seen in registry.requests if seen.kind == "token"]
        assert len(tokens) == 1
        assert "scope=repository:app:pull" in tokens[0].query.replace("%3A", ":")
        assert "service=fake, registry" in tokens[0].query.replace("+", " ")


async def test_each_repository_has_its_token(tmp_path: Path) -> None:
    """A token is never used for another repository, nor for another upstream."""
    async with FakeRegistry(auth="bearer") as one, FakeRegistry(auth="bearer") as two:
        for registry in (one, two):
            registry.add_image("app", "v1", BLOB)
            registry.add_image("other", "v1", BLOB)
        upstreams = {"one.test": one, "two.test": two}
        async with running_mirror(settings_for(tmp_path, upstreams)) as mirror:
            for name in upstreams:
                for repository in ("app", "other"):
                    assert (await mirror.get(f"{repository}/manifests/v1?ns={name}")).status == 200
        assert [one.count("token"), two.count("token")] == [2, 2]


@pytest.mark.fault(
    "registry: token ends early",
    done="401 in the middle",
    promised="one more token, the pull goes on",
)
@pytest.mark.parametrize("auth", ["bearer", "bearer-private"])
async def test_a_token_that_ends_is_renewed(auth: str, tmp_path: Path) -> None:
    """Upstream stops taking a token long before it said it would: one more token, and the pull goes on."""
    async with FakeRegistry(auth=auth) as registry:
        registry.add_image("app", "v1", BLOB)
        async with running_mirror(settings(tmp_path, registry)) as mirror:
            await mirror.get("app/manifests/v1?ns=r.test")
            registry.revoke_tokens()
            for digest, data in registry.blobs.items():
                assert (await mirror.get(f"app/blobs/{digest}?ns=r.test")).body == data
        assert registry.count("token") == 2


async def test_a_realm_that_moves_is_followed(tmp_path: Path) -> None:
    """As nvcr.io's does when a token ends: the new challenge counts, not the one remembered."""
    async with FakeRegistry(auth="bearer") as registry:
        registry.add_image("app", "v1", BLOB)
        async with running_mirror(settings(tmp_path, registry)) as mirror:
            await mirror.get("app/manifests/v1?ns=r.test")
            registry.revoke_tokens()
            registry.realm = registry.realm.replace("/token", "/token?moved=1")
            digest = next(iter(registry.blobs))
            assert (await mirror.get(f"app/blobs/{digest}?ns=r.test")).status == 200
        assert "moved=1" in [seen.query for seen in registry.requests if seen.kind == "token"][-1]


async def test_basic_is_sent_only_when_asked_for(tmp_path: Path) -> None:
    async with FakeRegistry(auth="basic") as registry:
        registry.add_image("app", "v1", BLOB)
        async with running_mirror(settings(tmp_path, registry)) as mirror:
            assert (await mirror.get("app/manifests/v1?ns=r.test")).status == 200
        sent = [seen.authorization for seen in registry.requests]
        assert sent[0] == ""
        assert all(value.startswith("Basic ") for value in sent[1:])


@pytest.mark.parametrize("auth", ["basic", "bearer-private"])
async def test_a_wrong_password_is_a_refusal(auth: str, tmp_path: Path) -> None:
    """403 with the upstream's name and what to set; asked twice at most."""
    async with FakeRegistry(auth=auth) as registry:
        registry.add_image("app", "v1", BLOB)
        async with running_mirror(settings(tmp_path, registry, password="wrong")) as mirror:
            got = await mirror.get("app/manifests/v1?ns=r.test")
            assert got.status == 403
            assert b"credentials" in got.body
            assert b"wrong" not in got.body
        assert len(registry.requests) <= 4


async def test_a_registry_that_wants_a_password_we_lack(tmp_path: Path) -> None:
    async with FakeRegistry(auth="basic") as registry:
        registry.add_image("app", "v1", BLOB)
        async with running_mirror(settings_for(tmp_path, {"r.test": registry})) as mirror:
            got = await mirror.get("app/manifests/v1?ns=r.test")
            assert got.status == 403
            assert b"user name" in got.body


async def test_403_drops_the_token_once(tmp_path: Path) -> None:
    """Some registries answer 403 to a token that has ended."""
    async with FakeRegistry(auth="bearer") as registry:
        registry.add_image("app", "v1", BLOB)
        async with running_mirror(settings(tmp_path, registry)) as mirror:
            registry.script("manifest", Status(403))
            assert (await mirror.get("app/manifests/v1?ns=r.test")).status == 200
            registry.always("blob", Status(403))
            digest = next(iter(registry.blobs))
            assert (await mirror.get(f"app/blobs/{digest}?ns=r.test")).status == 403


async def test_401_in_the_middle_of_a_blob(tmp_path: Path) -> None:
    async with FakeRegistry(auth="bearer") as registry:
        digest = registry.add_blob(BLOB)
        registry.script("blob", serve, revoke_tokens)
        async with running_mirror(settings(tmp_path, registry)) as mirror:
            assert (await mirror.get(f"app/blobs/{digest}?ns=r.test")).body == BLOB
