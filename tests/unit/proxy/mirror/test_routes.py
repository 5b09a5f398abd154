"""Which upstream a request is about, and what is not pulled."""

import json
from pathlib import Path
from typing import Any

import pytest
from fakes.faults import Status, WithHeaders
from fakes.mirror import RunningMirror, running_mirror, settings_for
from fakes.registry import FakeRegistry

from fastpull.config.errors import ConfigError
from fastpull.config.proxy import ProxySettings, UpstreamSettings
from fastpull.proxy.mirror.naming import Kind, Target, parse_target
from fastpull.proxy.upstream.via import OUR_VIA

HEX = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("path", "namespace", "expected"),
    [
        ("library/debian/manifests/12", None, (Kind.MANIFEST, "docker.io", "library/debian", "12")),
        ("debian/manifests/12", None, (Kind.MANIFEST, "docker.io", "library/debian", "12")),
        ("debian/manifests/12", "docker.io", (Kind.MANIFEST, "docker.io", "library/debian", "12")),
        ("debian/manifests/12", "registry-1.docker.io", (Kind.MANIFEST, "docker.io", "library/debian", "12")),
        ("app/blobs/sha256:x", "my.registry:5000", (Kind.BLOB, "my.registry:5000", "app", "sha256:x")),
        ("app/blobs/sha256:x", "[::1]:5000", (Kind.BLOB, "[::1]:5000", "app", "sha256:x")),
        ("app/blobs/sha256:x", "GHCR.io", (Kind.BLOB, "ghcr.io", "app", "sha256:x")),
        ("ghcr.io/org/app/manifests/v1", None, (Kind.MANIFEST, "ghcr.io", "org/app", "v1")),
        ("localhost:5000/app/manifests/v1", None, (Kind.MANIFEST, "localhost:5000", "app", "v1")),
        ("ghcr.io/org/app/manifests/v1", "quay.io", (Kind.MANIFEST, "quay.io", "ghcr.io/org/app", "v1")),
        ("docker.io/debian/tags/list", None, (Kind.TAGS, "docker.io", "library/debian", "")),
        ("a/b/c/d/tags/list", None, (Kind.TAGS, "docker.io", "a/b/c/d", "")),
        ("a/manifests/manifests/manifests/x", None, (Kind.MANIFEST, "docker.io", "a/manifests/manifests", "x")),
        ("a/b/referrers/sha256:x", None, (Kind.REFERRERS, "docker.io", "a/b", "sha256:x")),
    ],
)
def test_a_path_names_one_thing(path: str, namespace: str | None, expected: tuple[Any, ...]) -> None:
    assert parse_target(path, namespace, "docker.io") == Target(*expected)


@pytest.mark.parametrize(
    "path", ["", "a", "a/manifests/", "manifests/x", "a/blobs/uploads/", "_catalog", "a/tags", "a/b/c"]
)
def test_other_paths_are_no_pulls(path: str) -> None:
    assert parse_target(path, None, "docker.io") is None


async def get_all(mirror: RunningMirror, digest: str, paths: list[str]) -> list[int]:
    return [(await mirror.get(path.format(digest=digest))).status for path in paths]


async def test_an_upstream_is_named_in_three_ways(tmp_path: Path) -> None:
    """By ``ns``, in the path, or not at all."""
    async with FakeRegistry() as one, FakeRegistry() as two:
        digest = one.add_blob(b"one" * 1000)
        other = two.add_blob(b"two" * 1000)
        settings = settings_for(tmp_path, {"one.test:5000": one, "two.test": two}, default_upstream="two.test")
        async with running_mirror(settings) as mirror:
            ways = ["app/blobs/{digest}?ns=one.test:5000", "one.test:5000/app/blobs/{digest}"]
            assert await get_all(mirror, digest, ways) == [200, 200]
            assert await get_all(mirror, other, ["app/blobs/{digest}", "two.test/app/blobs/{digest}"]) == [200, 200]
            # A blob that is here is served whatever repository it is asked from: who knows the digest has it.
            assert await get_all(mirror, digest, ["app/blobs/{digest}"]) == [200]


async def test_unknown_upstreams_send_elsewhere(tmp_path: Path) -> None:
    """404 with what to set, so that containerd asks the registry itself."""
    async with running_mirror(settings_for(tmp_path, {})) as mirror:
        for path in (f"app/blobs/sha256:{HEX}?ns=strange.example", "strange.example/app/manifests/v1"):
            got = await mirror.get(path)
            assert got.status == 404
            assert "allow_any_upstream" in json.loads(got.body)["errors"][0]["message"]
        assert (await mirror.get("app/manifests/v1?ns=a%2Fb")).status == 400


@pytest.mark.parametrize(
    "name",
    ["127.0.0.1", "127.0.0.1:5000", "10.0.0.1", "[::1]:443", "169.254.169.254", "metadata.google.internal", "localhost",
     "registry.svc", "registry", "[::ffff:10.0.0.1]", "0.0.0.0"],
)  # fmt: skip
async def test_any_upstream_is_never_a_private_one(name: str, tmp_path: Path) -> None:
    """``ns`` comes from whoever can reach us: it must not open our own network to them."""
    async with running_mirror(settings_for(tmp_path, {}, allow_any_upstream=True)) as mirror:
        assert (await mirror.get(f"app/manifests/v1?ns={name}")).status in (400, 403)


async def test_a_name_that_resolves_to_a_private_address_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The address that is connected to is checked, not the name."""
    from fastpull.proxy.upstream import addresses

    async def resolve(self: Any, host: str, port: int = 0, family: Any = 0) -> list[Any]:
        return [{"hostname": host, "host": "127.0.0.1", "port": port, "family": 2, "proto": 0, "flags": 0}]

    monkeypatch.setattr(addresses.ThreadedResolver, "resolve", resolve)
    async with running_mirror(settings_for(tmp_path, {}, allow_any_upstream=True)) as mirror:
        got = await mirror.get("app/manifests/v1?ns=rebind.example")
        assert got.status == 403
        assert b"private" in got.body


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "app/blobs/uploads/"),
        ("PUT", "app/manifests/v1"),
        ("PATCH", "app/blobs/uploads/x"),
        ("DELETE", f"app/blobs/sha256:{HEX}"),
        ("DELETE", "app/manifests/v1"),
        ("POST", ""),
    ],
)
async def test_pushes_are_refused(method: str, path: str, tmp_path: Path) -> None:
    async with running_mirror(settings_for(tmp_path, {})) as mirror:
        got = await mirror.request(method, path)
        assert got.status == 405
        assert got.headers["Allow"] == "GET, HEAD"
        assert json.loads(got.body)["errors"][0]["code"] == "UNSUPPORTED"


async def test_the_version_check(tmp_path: Path) -> None:
    async with running_mirror(settings_for(tmp_path, {})) as mirror:
        for path in ("", "?ns=docker.io"):
            got = await mirror.get(path)
            assert (got.status, got.headers["Docker-Distribution-API-Version"]) == (200, "registry/2.0")


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("app/blobs/sha256:00", 400, "DIGEST_INVALID"),
        (f"app/blobs/sha512:{HEX}{HEX}", 400, "DIGEST_INVALID"),
        ("App/manifests/v1", 400, "NAME_INVALID"),
        ("app/manifests/-v1", 400, "NAME_INVALID"),
        ("app/manifests/sha256:xyz", 400, "NAME_INVALID"),
        ("a%2F..%2F..%2Fetc/manifests/v1", 400, "NAME_INVALID"),
        ("app/blobs/..%2F..%2Fetc%2Fpasswd", 404, "NAME_UNKNOWN"),
        ("_catalog", 404, "NAME_UNKNOWN"),
        (f"{'a' * 300}/manifests/v1", 400, "NAME_INVALID"),
    ],
)
async def test_malformed_requests_never_reach_upstream(path: str, status: int, code: str, tmp_path: Path) -> None:
    async with FakeRegistry() as registry:
        async with running_mirror(settings_for(tmp_path, {"docker.io": registry})) as mirror:
            got = await mirror.get(path)
            assert (got.status, json.loads(got.body)["errors"][0]["code"]) == (status, code)
        assert registry.requests == []


async def test_tags_are_passed_through_and_kept_for_a_moment(tmp_path: Path) -> None:
    async with FakeRegistry() as registry:
        registry.add_image("app", "v1", b"x")
        registry.add_image("app", "v2", b"y")
        async with running_mirror(settings_for(tmp_path, {"r.test": registry})) as mirror:
            for _ in range(3):
                got = await mirror.get("app/tags/list?ns=r.test&n=10&last=v0&secret=1")
                assert json.loads(got.body) == {"name": "app", "tags": ["v1", "v2"]}
            assert [seen.query for seen in registry.requests] == ["n=10&last=v0"]
            assert (await mirror.get("app/tags/list?ns=r.test&n=11")).status == 200
            assert registry.count("listing") == 2


async def test_the_next_page_comes_through_us(tmp_path: Path) -> None:
    """A Link header leads back to the mirror, with the namespace."""
    async with FakeRegistry() as registry:
        registry.add_image("app", "v1", b"x")
        registry.script("listing", WithHeaders({"Link": '</v2/app/tags/list?n=1&last=v1>; rel="next"'}))
        async with running_mirror(settings_for(tmp_path, {"r.test": registry})) as mirror:
            got = await mirror.get("app/tags/list?ns=r.test&n=1")
            assert got.headers["Link"] == '</v2/app/tags/list?n=1&last=v1&ns=r.test>; rel="next"'


async def test_referrers(tmp_path: Path) -> None:
    """404 of a registry without the API is passed on: clients then look for the tag ``sha256-<hex>``."""
    async with FakeRegistry() as registry:
        index = json.dumps({"schemaVersion": 2, "manifests": []}).encode()
        registry.add_manifest("app", f"sha256-{HEX}", index, "application/vnd.oci.image.index.v1+json")
        async with running_mirror(settings_for(tmp_path, {"r.test": registry})) as mirror:
            assert (await mirror.get(f"app/referrers/sha256:{HEX}?ns=r.test")).status == 404
            assert (await mirror.get(f"app/manifests/sha256-{HEX}?ns=r.test")).body == index
            registry.script(
                "listing",
                Status(
                    200,
                    {"Content-Type": "application/vnd.oci.image.index.v1+json", "OCI-Filters-Applied": "artifactType"},
                    index,
                ),
            )
            got = await mirror.get(f"app/referrers/sha256:{HEX}?ns=r.test&artifactType=a/b")
            assert (got.status, got.body) == (200, index)
            assert got.headers["OCI-Filters-Applied"] == "artifactType"
            assert registry.requests[-1].query == "artifactType=a/b"


async def test_a_proxy_in_front_of_itself_ends(tmp_path: Path) -> None:
    """A request of ours that comes back to us is refused, however it came."""
    async with FakeRegistry() as registry:
        async with running_mirror(settings_for(tmp_path, {"r.test": registry})) as mirror:
            got = await mirror.get("app/manifests/v1?ns=r.test", headers={"Via": f"1.1 other, {OUR_VIA}"})
            assert got.status == 403
            await mirror.get("app/manifests/v1?ns=r.test", headers={"Via": "1.1 other"})
        assert [seen.headers["Via"] for seen in registry.requests] == [OUR_VIA]


@pytest.mark.parametrize(
    "url", ["ftp://x", "https://", "https://x/path", "https://x?y", "https://u:p@x", "x:5000", "https://[x"]
)
async def test_a_wrong_url_is_told_at_the_start(url: str, tmp_path: Path) -> None:
    settings = ProxySettings(data_dir=tmp_path, upstreams={"r.test": UpstreamSettings(url=url)})
    with pytest.raises(ConfigError, match=r"r\.test"):
        async with running_mirror(settings):
            pass
