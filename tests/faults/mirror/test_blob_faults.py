"""Faults of a registry while a blob is pulled."""

import asyncio
import random
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from fakes.faults import (
    Body,
    CloseBeforeHead,
    CutAfter,
    FlipByte,
    IgnoreRange,
    Slowly,
    StallAfter,
    Status,
    WithHeaders,
    WithoutLength,
    expire_links,
    expire_links_400,
    revoke_tokens,
)
from fakes.mirror import RunningMirror, running_mirror, settings_for, until
from fakes.registry import FakeRegistry, Fault, serve

SIZE = 1_000_003
BLOB = random.Random(7).randbytes(SIZE)
PIECE = 256 * 1024  # four ranges, the first one asked for alone
GO_ELSEWHERE = {403, 404, 503}  # containerd asks its next host at once

RIGHT = frozenset({"right"})
ERROR = frozenset({"elsewhere"})
CUT = frozenset({"cut, then elsewhere"})


async def outcome_of(mirror: RunningMirror, digest: str) -> str:
    """Pull as containerd does: once, and after a short body again from where it ended."""
    path = f"app/blobs/{digest}?ns=r.test"
    try:
        got = await mirror.get(path)
    except aiohttp.ClientPayloadError:  # FIN before the end; containerd asks for the rest
        try:
            rest = await mirror.get(path, headers={"Range": f"bytes={SIZE // 2}-"})
        except aiohttp.ClientPayloadError:
            return "cut twice"
        if rest.status in GO_ELSEWHERE:
            return "cut, then elsewhere"
        return "cut, then right" if rest.body == BLOB[SIZE // 2 :] else "WRONG BYTES"
    if got.status in GO_ELSEWHERE:
        return "elsewhere"
    return "right" if (got.status, got.body) == (200, BLOB) else f"WRONG {got.status}"


def row(name: str, outcomes: frozenset[str], *faults: Fault, always: Fault | None = None, **options: Any) -> Any:
    return pytest.param(faults, always, outcomes, options, id=name)


WRONG_PLACE = WithHeaders({"Content-Range": f"bytes 1-{PIECE}/{SIZE}"})
WRONG_TOTAL = WithHeaders({"Content-Range": f"bytes 0-{PIECE - 1}/{SIZE + 1}"})


@pytest.mark.fault(
    "registry: every kind of bad answer to a blob",
    done="status codes, cuts, stalls, lies, redirects, wrong bytes ([all rows](tests/faults/mirror/README.md))",
    promised="the right blob, or 404 or 503 and the client goes elsewhere",
)
@pytest.mark.parametrize(
    ("faults", "always", "outcomes", "options"),
    [
        row("nothing", RIGHT),
        row("cut-at-once", RIGHT, CutAfter(0)),
        row("cut-then-resumed", RIGHT, CutAfter(100)),
        row("cut-four-times", RIGHT, *[CutAfter(1000)] * 4),
        row("cut-in-a-later-range", RIGHT, serve, CutAfter(5), CutAfter(70_000)),
        row("always-cut-after-some-bytes", RIGHT, always=CutAfter(50_000)),
        row("always-cut-without-a-byte", CUT, serve, always=CutAfter(0)),
        row("reset-in-the-body", RIGHT, CutAfter(100_000, reset=True)),
        row("reset-in-a-later-range", RIGHT, serve, CutAfter(10, reset=True)),
        row("reset-before-the-head", RIGHT, CloseBeforeHead(reset=True)),
        row("closed-before-the-head", RIGHT, CloseBeforeHead()),
        row("always-closed-before-the-head", ERROR, always=CloseBeforeHead()),
        row("stall-before-the-head", RIGHT, StallAfter(None), read_timeout_seconds=0.5),
        row("stall-in-the-body", RIGHT, StallAfter(1000), read_timeout_seconds=0.5),
        row("always-stalls-before-the-head", ERROR, always=StallAfter(None), answer_timeout_seconds=1.0),
        row("always-stalls-in-later-ranges", CUT, serve, always=StallAfter(0), read_timeout_seconds=0.2),
        row("slow-to-answer", RIGHT, Slowly(0.5)),
        row("one-bit-flipped-in-the-first-range", CUT, FlipByte(4711)),
        row("one-bit-flipped-in-the-last-byte", CUT, always=FlipByte(-1)),
        row("200-to-a-range", RIGHT, always=IgnoreRange()),
        row("200-to-a-range-cut-once", RIGHT, IgnoreRange(cut_after=600_000), always=IgnoreRange()),
        row("200-to-a-later-range", RIGHT, serve, IgnoreRange()),
        row("200-to-ranges-always-cut", CUT, always=IgnoreRange(cut_after=300_000)),
        row("content-range-of-another-place-once", RIGHT, serve, WRONG_PLACE),
        row("content-range-of-another-place", ERROR, always=WRONG_PLACE),
        row("content-range-of-another-size", ERROR | CUT, always=WRONG_TOTAL),
        row("206-without-content-range", ERROR, always=WithHeaders({}, without=("Content-Range",))),
        row("no-length-clean-end", RIGHT | ERROR, always=WithoutLength()),
        row("no-length-cut", ERROR, always=WithoutLength(500_000)),
        row("401-in-the-middle", RIGHT, serve, serve, revoke_tokens, auth="bearer"),
        row("403-in-the-middle-once", RIGHT, serve, serve, Status(403), auth="bearer"),
        row("403-from-the-start", ERROR, always=Status(403)),
        row("401-without-challenge", ERROR, always=Status(401)),
        row("404-in-the-middle", CUT, serve, always=Status(404)),
        row("404-from-the-start", ERROR, always=Status(404)),
        row("429-with-a-short-retry-after", RIGHT, Status(429, {"Retry-After": "1"})),
        row("429-with-a-long-retry-after", ERROR, always=Status(429, {"Retry-After": "3600"})),
        row("429-without-retry-after", ERROR, always=Status(429)),
        row("429-in-the-middle", RIGHT, serve, Status(429, {"Retry-After": "0"})),
        row("500-once", RIGHT, Status(500)),
        row("503-in-a-later-range", RIGHT, serve, Status(503), Status(502), Status(504)),
        row("503-always", ERROR, always=Status(503)),
        row("416-always", ERROR, always=Status(416)),
        row("304", ERROR, always=Status(304)),
        row("html-instead-of-the-blob", ERROR | CUT, always=Body(b"<html>please log in</html>")),
        row("empty-200", ERROR | CUT, always=Body(b"", "application/octet-stream")),
        row("content-encoding-as-a-label", RIGHT, always=IgnoreRange(encoding="label")),
        row("content-encoding-in-earnest", ERROR | CUT, always=IgnoreRange(encoding="gzip")),
        row("redirected", RIGHT, storage=True),
        row("redirected-behind-bearer", RIGHT, storage=True, auth="bearer"),
        row("redirect-loop", ERROR, always=Status(307, {"Location": "/v2/app/blobs/again"})),
        row("redirect-to-nowhere", ERROR, always=Status(307)),
        row("redirect-to-no-url", ERROR, always=Status(307, {"Location": "http://[::1"})),
        row("redirect-to-a-file", ERROR, always=Status(307, {"Location": "file:///etc/passwd"})),
        row("redirect-of-100-kilobytes", ERROR, always=Status(307, {"Location": "/" + "x" * 100_000})),
    ],
)
async def test_a_pull_gives_the_blob_or_sends_elsewhere(
    faults: tuple[Fault, ...],
    always: Fault | None,
    outcomes: frozenset[str],
    options: dict[str, Any],
    tmp_path: Path,
) -> None:
    """Whatever upstream does, a client gets the right bytes, or an error or a short body after which
    containerd goes elsewhere; and the store holds the right bytes or nothing.
    """
    of_registry = {name: options.pop(name) for name in ("auth", "storage") if name in options}
    async with FakeRegistry(**of_registry) as registry:
        digest = registry.add_blob(BLOB)
        registry.script("blob", *faults)
        registry.always("blob", always)
        settings = settings_for(tmp_path, {"r.test": registry}, range_bytes=PIECE, **options)
        async with running_mirror(settings) as mirror:
            assert await outcome_of(mirror, digest) in outcomes
            blobs = mirror.mirror.blobs
            await until(lambda: not blobs.is_filling(blobs_digest(digest)))
            assert mirror.blobs_on_disk() in ({}, {digest: BLOB})
            assert (mirror.blobs_on_disk() == {digest: BLOB}) == (outcomes == RIGHT) or outcomes > RIGHT


def blobs_digest(text: str) -> Any:
    from fastpull.cache.digest import Digest

    return Digest.parse(text)


@pytest.mark.parametrize("ending", [expire_links, expire_links_400])
async def test_a_presigned_link_that_ends_is_renewed(ending: Fault, tmp_path: Path) -> None:
    """Storage refuses a link between two parts: upstream is asked for a new one, and the pull goes on."""
    async with FakeRegistry(storage=True) as registry:
        digest = registry.add_blob(BLOB)
        registry.script("storage", serve, serve, ending)
        settings = settings_for(tmp_path, {"r.test": registry}, range_bytes=PIECE)
        async with running_mirror(settings) as mirror:
            assert await outcome_of(mirror, digest) == "right"
        assert registry.count("blob") < registry.count("storage")  # links are reused


async def test_a_link_that_never_works_sends_elsewhere(tmp_path: Path) -> None:
    """Storage that refuses fresh links is an upstream that fails, not a missing blob."""
    async with FakeRegistry(storage=True) as registry:
        digest = registry.add_blob(BLOB)
        registry.always("storage", Status(403))
        async with running_mirror(settings_for(tmp_path, {"r.test": registry})) as mirror:
            assert (await mirror.get(f"app/blobs/{digest}?ns=r.test")).status == 503


async def test_no_login_goes_to_storage(tmp_path: Path) -> None:
    """A redirect to another host is followed without Authorization; a relative one stays with the registry."""
    async with FakeRegistry(storage=True, auth="basic") as registry:
        digest = registry.add_blob(BLOB)
        registry.script("blob", Status(302, {"Location": f"/v2/app/blobs/{digest}?again=1"}))
        async with running_mirror(with_login(tmp_path, registry)) as mirror:
            assert await outcome_of(mirror, digest) == "right"
        assert all(not seen.authorization for seen in registry.requests if seen.kind == "storage")
        assert registry.count("storage") >= 1
        assert any("X-Sig=a%2Bb" in seen.query for seen in registry.requests)  # as signed, not re-quoted


def with_login(tmp_path: Path, registry: FakeRegistry) -> Any:
    from fastpull.config.proxy import CredentialSettings, UpstreamSettings

    login = CredentialSettings(kind="basic", username=registry.username, password=registry.password)
    upstream = UpstreamSettings(url=registry.url, credentials=login, redirect_private=True)
    return settings_for(tmp_path, {"r.test": upstream}, range_bytes=PIECE)


async def test_a_redirect_to_a_private_address_is_refused(tmp_path: Path) -> None:
    """Unless the upstream's settings allow it: a registry must not make us fetch from our own network."""
    from fastpull.config.proxy import UpstreamSettings

    async with FakeRegistry(storage=True) as registry:
        digest = registry.add_blob(BLOB)
        settings = settings_for(tmp_path, {"r.test": UpstreamSettings(url=registry.url)})
        async with running_mirror(settings) as mirror:
            got = await mirror.get(f"app/blobs/{digest}?ns=r.test")
            assert got.status == 403
            assert b"private" in got.body
        assert registry.count("storage") == 0


async def test_404_is_not_remembered_for_long(tmp_path: Path) -> None:
    """Push after a failed pull: the blob is found as soon as the short negative memory has ended."""
    async with FakeRegistry() as registry:
        digest = registry.add_blob(BLOB)
        registry.script("blob", Status(404))
        settings = settings_for(tmp_path, {"r.test": registry}, negative_ttl_seconds=0.2)
        async with running_mirror(settings) as mirror:
            assert (await mirror.get(f"app/blobs/{digest}?ns=r.test")).status == 404
            async with asyncio.timeout(30):
                while (got := await mirror.get(f"app/blobs/{digest}?ns=r.test")).status == 404:
                    await asyncio.sleep(0.05)
            assert got.body == BLOB
        assert registry.count("blob") >= 2


async def test_a_wrong_blob_is_answered_503_for_a_while(tmp_path: Path) -> None:
    """After a mismatch the client's second try must not get other bytes behind the wrong ones it has."""
    async with FakeRegistry() as registry:
        digest = registry.add_blob(BLOB)
        registry.script("blob", FlipByte(3))
        settings = settings_for(tmp_path, {"r.test": registry}, mismatch_seconds=0.5)
        async with running_mirror(settings) as mirror:
            assert await outcome_of(mirror, digest) == "cut, then elsewhere"
            async with asyncio.timeout(30):
                while (got := await mirror.get(f"app/blobs/{digest}?ns=r.test")).status != 200:
                    assert got.status == 503
                    await asyncio.sleep(0.05)
            assert got.body == BLOB
