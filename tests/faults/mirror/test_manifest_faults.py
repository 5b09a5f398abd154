"""Faults of a registry while a manifest is asked for."""

import asyncio
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from fakes.faults import Body, CloseBeforeHead, CutAfter, FlipByte, Slowly, StallAfter, Status, WithHeaders
from fakes.mirror import RunningMirror, running_mirror, settings_for
from fakes.registry import OCI_INDEX, OCI_MANIFEST, FakeRegistry, Fault, digest_of, serve

GO_ELSEWHERE = {403, 404, 503}


def manifest_of(text: str) -> bytes:
    config = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest_of(b"{}"), "size": 2}
    body = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [], "annotations": {"t": text}}
    return json.dumps(body).encode()


MANIFEST = manifest_of("right")
SCHEMA1 = json.dumps({"schemaVersion": 1, "fsLayers": []}).encode()


def row(name: str, outcome: str, *faults: Fault, always: Fault | None = None, **options: Any) -> Any:
    return pytest.param(faults, always, outcome, options, id=name)


@pytest.mark.fault(
    "registry: every kind of bad answer to a manifest",
    done="status codes, cuts, login pages, wrong bytes",
    promised="the right manifest, or the client goes elsewhere",
)
@pytest.mark.parametrize("by", ["tag", "digest"])
@pytest.mark.parametrize(
    ("faults", "always", "outcome", "options"),
    [
        row("nothing", "right"),
        row("cut-once", "right", CutAfter(10)),
        row("reset-once", "right", CutAfter(10, reset=True)),
        row("reset-before-the-head", "right", CloseBeforeHead(reset=True)),
        row("always-cut", "elsewhere", always=CutAfter(10)),
        row("one-bit-flipped-once", "right", FlipByte(-20)),
        row("one-bit-flipped-always", "elsewhere", always=FlipByte(-20)),
        row("stall-before-the-head", "elsewhere", always=StallAfter(None), answer_timeout_seconds=0.5),
        row("stall-in-the-body", "elsewhere", always=StallAfter(5), answer_timeout_seconds=0.5),
        row("slow", "right", Slowly(0.3)),
        row("html-with-200", "elsewhere", always=Body(b"<html>Please log in.</html>")),
        row("html-as-manifest-type", "elsewhere", always=Body(b"<html>Please log in.</html>", OCI_MANIFEST)),
        row("an-error-with-200", "elsewhere", always=Body(b'{"errors":[]}', "application/json")),
        row("schema-1", "elsewhere", always=Body(SCHEMA1, "application/vnd.docker.distribution.manifest.v1+json")),
        row("empty", "elsewhere", always=Body(b"", OCI_MANIFEST)),
        row("five-megabytes", "elsewhere", always=Body(MANIFEST + b" " * 5_000_000, OCI_MANIFEST)),
        row("deep-nesting", "elsewhere", always=Body(b"[" * 100_000, OCI_MANIFEST)),
        row("json-without-a-type", "right", always=WithHeaders({"Content-Type": "application/json"})),
        row("no-content-type", "right", always=WithHeaders({}, without=("Content-Type",))),
        row(
            "another-digest-in-the-head",
            "right by digest",
            always=WithHeaders({"Docker-Content-Digest": digest_of(b"")}),
        ),
        row("no-digest-in-the-head", "right", always=WithHeaders({}, without=("Docker-Content-Digest",))),
        row("nonsense-digest-in-the-head", "right", always=WithHeaders({"Docker-Content-Digest": "md5:0"})),
        row("gzipped", "right", always=Body(gzip.compress(MANIFEST), OCI_MANIFEST, {"Content-Encoding": "gzip"})),
        row(
            "gzip-cut",
            "elsewhere",
            always=Body(gzip.compress(MANIFEST)[:-9], OCI_MANIFEST, {"Content-Encoding": "gzip"}),
        ),
        row(
            "gzip-bomb",
            "elsewhere",
            always=Body(gzip.compress(bytes(9_000_000)), OCI_MANIFEST, {"Content-Encoding": "gzip"}),
        ),
        row("gzip-as-a-label", "right", always=WithHeaders({"Content-Encoding": "gzip"})),
        row("brotli", "elsewhere", always=Body(b"\x1b\x00", OCI_MANIFEST, {"Content-Encoding": "br"})),
        row("401-without-challenge", "elsewhere", always=Status(401)),
        row("401-negotiate", "elsewhere", always=Status(401, {"WWW-Authenticate": "Negotiate abc=="})),
        row("403", "elsewhere", always=Status(403)),
        row("404", "elsewhere", always=Status(404)),
        row("408", "elsewhere", always=Status(408)),
        row("429", "elsewhere", always=Status(429, {"Retry-After": "9"})),
        row("429-once", "right", Status(429, {"Retry-After": "0"})),
        row("500-once", "right", Status(500)),
        row("503-always", "elsewhere", always=Status(503)),
        row("204", "elsewhere", always=Status(204)),
        row("304", "elsewhere", always=Status(304)),
        row("300", "elsewhere", always=Status(300)),
        row("redirect-loop", "elsewhere", always=Status(307, {"Location": "/v2/app/manifests/again"})),
        row("redirect-to-http-elsewhere", "elsewhere", always=Status(307, {"Location": "ftp://x/"})),
    ],
)
async def test_a_manifest_is_right_or_not_there(
    faults: tuple[Fault, ...], always: Fault | None, outcome: str, options: dict[str, Any], by: str, tmp_path: Path
) -> None:
    """Whatever upstream does, a client gets the manifest verbatim or an answer that sends it elsewhere at once;
    and what was wrong once is not remembered.
    """
    async with FakeRegistry() as registry:
        digest = registry.add_manifest("app", "v1", MANIFEST)
        registry.script("manifest", *faults)
        registry.always("manifest", always)
        async with running_mirror(settings_for(tmp_path, {"r.test": registry}, **options)) as mirror:
            path = f"app/manifests/{'v1' if by == 'tag' else digest}?ns=r.test"
            got = await mirror.get(path)
            if outcome == "right" or (outcome == "right by digest" and by == "digest"):
                assert (got.status, got.body) == (200, MANIFEST)
                assert got.headers["Docker-Content-Digest"] == digest
                assert got.headers["Content-Type"] == OCI_MANIFEST
            else:
                assert got.status in GO_ELSEWHERE
                assert json.loads(got.body)["errors"][0]["code"]
            registry.always("manifest", None)
            assert (await mirror.get(path)).body == MANIFEST


STALE = [
    pytest.param(Status(503), id="503"),
    pytest.param(Status(429), id="429"),
    pytest.param(StallAfter(None), id="timeout"),
    pytest.param(CloseBeforeHead(reset=True), id="reset"),
    pytest.param(Body(b"<html/>"), id="portal"),
]


@pytest.mark.fault(
    "registry: away",
    done="timeouts, 5xx, 429, refused connections",
    promised="tags as they were, with a Warning",
)
@pytest.mark.parametrize("fault", STALE)
async def test_a_tag_is_answered_while_upstream_is_not_there(fault: Fault, tmp_path: Path) -> None:
    """With the digest it last had, and a Warning that says so; GET and HEAD alike."""
    async with FakeRegistry() as registry:
        digest = registry.add_manifest("app", "v1", MANIFEST)
        settings = settings_for(tmp_path, {"r.test": registry}, tag_ttl_seconds=0.0, answer_timeout_seconds=1.0)
        async with running_mirror(settings) as mirror:
            assert "Warning" not in (await mirror.get("app/manifests/v1?ns=r.test")).headers
            registry.always("manifest", fault)
            for method in ("GET", "HEAD"):
                got = await mirror.request(method, "app/manifests/v1?ns=r.test")
                assert (got.status, got.headers["Docker-Content-Digest"]) == (200, digest)
                assert got.headers["Warning"].startswith('299 - "stale: ')
            assert registry.count("manifest", "GET") <= 5  # pulls are not spent on looking


@pytest.mark.parametrize(("status", "code"), [(401, 403), (403, 403), (404, 404)])
async def test_a_refusal_is_no_outage(status: int, code: int, tmp_path: Path) -> None:
    """Who may not pull any more, or asks for what was deleted, gets no stale answer."""
    async with FakeRegistry() as registry:
        registry.add_manifest("app", "v1", MANIFEST)
        async with running_mirror(settings_for(tmp_path, {"r.test": registry}, tag_ttl_seconds=0.0)) as mirror:
            assert (await mirror.get("app/manifests/v1?ns=r.test")).status == 200
            registry.always("manifest", Status(status))
            assert (await mirror.get("app/manifests/v1?ns=r.test")).status == code
            assert (await mirror.request("HEAD", "app/manifests/v1?ns=r.test")).status == code


async def test_a_stale_tag_ends(tmp_path: Path) -> None:
    """After ``tag_max_stale_seconds`` an outage is an outage."""
    async with FakeRegistry() as registry:
        registry.add_manifest("app", "v1", MANIFEST)
        settings = settings_for(tmp_path, {"r.test": registry}, tag_ttl_seconds=0.0, tag_max_stale_seconds=0.0)
        async with running_mirror(settings) as mirror:
            assert (await mirror.get("app/manifests/v1?ns=r.test")).status == 200
            registry.always("manifest", Status(503))
            assert (await mirror.get("app/manifests/v1?ns=r.test")).status == 503


async def test_a_tag_that_moves_during_a_pull(tmp_path: Path) -> None:
    """The digest that a HEAD gave stays pullable, and the next look gives the new one."""
    async with FakeRegistry() as registry:
        old = registry.add_manifest("app", "v1", MANIFEST)
        async with running_mirror(settings_for(tmp_path, {"r.test": registry}, tag_ttl_seconds=0.0)) as mirror:
            head = await mirror.request("HEAD", "app/manifests/v1?ns=r.test")
            new = registry.add_manifest("app", "v1", manifest_of("new"))
            assert head.headers["Docker-Content-Digest"] == old
            assert (await mirror.get(f"app/manifests/{old}?ns=r.test")).body == MANIFEST
            moved = await mirror.get("app/manifests/v1?ns=r.test")
            assert moved.headers["Docker-Content-Digest"] == new
            assert moved.body == manifest_of("new")


async def test_a_tag_that_is_fresh_costs_nothing(tmp_path: Path) -> None:
    """Within its TTL a tag is answered from here; when due it costs a HEAD, which is no pull at Docker Hub."""
    async with FakeRegistry() as registry:
        registry.add_manifest("app", "v1", MANIFEST)
        async with running_mirror(settings_for(tmp_path, {"r.test": registry}, tag_ttl_seconds=3600.0)) as mirror:
            for _ in range(3):
                await mirror.request("HEAD", "app/manifests/v1?ns=r.test")
                await mirror.get("app/manifests/v1?ns=r.test")
            assert (registry.count("manifest", "HEAD"), registry.count("manifest", "GET")) == (1, 1)


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(WithHeaders({}, without=("Docker-Content-Digest",)), id="no-digest"),
        pytest.param(Body(b"", "text/html"), id="html"),
        pytest.param(
            WithHeaders({"Content-Type": "application/vnd.docker.distribution.manifest.v1+prettyjws"}), id="v1"
        ),
    ],
)
async def test_a_head_that_says_too_little_becomes_a_get(fault: Fault, tmp_path: Path) -> None:
    """containerd needs digest, type and length of a HEAD."""
    async with FakeRegistry() as registry:
        digest = registry.add_manifest("app", "v1", MANIFEST)
        registry.script("manifest", fault)
        async with running_mirror(settings_for(tmp_path, {"r.test": registry})) as mirror:
            got = await mirror.request("HEAD", "app/manifests/v1?ns=r.test")
            assert (got.status, got.headers["Docker-Content-Digest"]) == (200, digest)
            assert got.headers["Content-Length"] == str(len(MANIFEST))
            assert got.headers["Content-Type"] == OCI_MANIFEST


async def test_404_then_present(tmp_path: Path) -> None:
    """Pull, fail, push, pull: the short negative memory shields upstream and does not outlive the push for long."""
    async with FakeRegistry() as registry:
        settings = settings_for(tmp_path, {"r.test": registry}, negative_ttl_seconds=0.3)
        async with running_mirror(settings) as mirror:
            for _ in range(5):
                assert (await mirror.get("app/manifests/v1?ns=r.test")).status == 404
            assert registry.count("manifest") == 1
            registry.add_manifest("app", "v1", MANIFEST)
            async with asyncio.timeout(30):
                while (await mirror.get("app/manifests/v1?ns=r.test")).status != 200:
                    await asyncio.sleep(0.05)


async def test_a_purged_tag_is_asked_for_again(tmp_path: Path) -> None:
    async with FakeRegistry() as registry:
        registry.add_manifest("app", "v1", MANIFEST)
        async with running_mirror(settings_for(tmp_path, {"r.test": registry}, tag_ttl_seconds=3600.0)) as mirror:
            await mirror.get("app/manifests/v1?ns=r.test")
            new = registry.add_manifest("app", "v1", manifest_of("new"))
            assert await mirror.mirror.manifests.purge("r.test", "app", "v1")
            assert not await mirror.mirror.manifests.purge("r.test", "app", "v2")
            got = await mirror.get("app/manifests/v1?ns=r.test")
            assert got.headers["Docker-Content-Digest"] == new


@pytest.mark.fault(
    "registry: away, proxy restarted",
    done="both",
    promised="what was pulled can still be pulled",
)
async def test_a_restart_keeps_tags_and_manifests(tmp_path: Path) -> None:
    """With the registry gone and the mirror restarted, what was pulled can still be pulled."""
    async with FakeRegistry() as registry:
        digest = registry.add_image("app", "v1", b"layer" * 1000)
        settings = settings_for(tmp_path, {"r.test": registry}, tag_ttl_seconds=0.0)
        async with running_mirror(settings) as mirror:
            await pull(mirror, registry)
        bodies = [registry.manifests["app", "v1"][1], *registry.blobs.values()]
    async with running_mirror(settings) as mirror:
        got = await mirror.get("app/manifests/v1?ns=r.test")
        assert got.headers["Docker-Content-Digest"] == digest
        assert "Warning" in got.headers
        assert [got.body, *[(await mirror.get(f"app/blobs/{d}?ns=r.test")).body for d in registry.blobs]] == bodies


async def pull(mirror: RunningMirror, registry: FakeRegistry) -> None:
    assert (await mirror.get("app/manifests/v1?ns=r.test")).status == 200
    for digest, data in registry.blobs.items():
        assert (await mirror.get(f"app/blobs/{digest}?ns=r.test")).body == data


async def test_many_ask_for_one_tag(tmp_path: Path) -> None:
    """A hundred nodes that start at once are one request upstream."""
    async with FakeRegistry() as registry:
        registry.add_manifest("app", "v1", MANIFEST, OCI_MANIFEST)
        registry.script("manifest", Slowly(0.3))
        async with running_mirror(settings_for(tmp_path, {"r.test": registry})) as mirror:
            answers = await asyncio.gather(*(mirror.get("app/manifests/v1?ns=r.test") for _ in range(100)))
            assert all(answer.body == MANIFEST for answer in answers)
        assert registry.count("manifest") == 1


async def test_an_index_is_told_apart(tmp_path: Path) -> None:
    """Indexes are served as what they are, also where the registry's header and body disagree about the family."""
    index = json.dumps({"schemaVersion": 2, "manifests": []}).encode()
    async with FakeRegistry() as registry:
        registry.add_manifest("app", "v1", index, "application/json")
        registry.script("manifest", serve)
        async with running_mirror(settings_for(tmp_path, {"r.test": registry})) as mirror:
            assert (await mirror.get("app/manifests/v1?ns=r.test")).headers["Content-Type"] == OCI_INDEX
