"""Real clients pull through the mirror from real registries."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.token_server import TokenServer
from harness.containerd import Containerd
from harness.oci import Image, OciLayout, directory, file
from harness.processes import run
from harness.proxy import Proxy
from harness.registry import PASSWORD, USERNAME, Registry

from fastpull.proxy.hosts_toml import write_hosts

NAME = "registry.test"


class OwnRegistry(Registry):
    """With further settings, over a storage that another one has filled."""

    def __init__(self, root: Path, settings: str) -> None:
        self._further = settings
        super().__init__(root)

    def _settings(self, root: Path) -> str:
        return super()._settings(root) + self._further


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    layout = OciLayout(tmp_path_factory.mktemp("layout"))
    source = random.Random(1)
    layers = [
        layout.add_layer([directory("data"), file(f"data/{n}", source.randbytes(3_000_000))], compression="gzip")
        for n in range(3)
    ]
    return layout.add_image("app", layers)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory, image: Image) -> Iterator[Registry]:
    with Registry(tmp_path_factory.mktemp("registry")) as running:
        running.push(image, "team/app:v1")
        running.push(image, "library/app:v1")
        yield running


def upstream(url: str, *, login: bool = False, default: bool = False) -> str:
    settings = f'[mirror]\ndefault_upstream = "{NAME}"\n' if default else ""
    settings += f'[ingest]\ntrigger = "on-warm"\n[upstreams."{NAME}"]\nurl = "{url}"\n'
    if login:
        credentials = f'kind = "basic"\nusername = "{USERNAME}"\npassword = "{PASSWORD}"\n'
        settings += f'[upstreams."{NAME}".credentials]\n{credentials}'
    return settings


def copied(source: str, target: Path) -> set[str]:
    """Pull with skopeo, which checks every digest; return the digests of what came."""
    run(
        "skopeo",
        "--insecure-policy",
        "copy",
        "--src-tls-verify=false",
        f"docker://{source}",
        f"dir:{target}",
        seconds=120,
    )
    return {path.name for path in target.iterdir() if len(path.name) == 64}


def expected(image: Image) -> set[str]:
    manifest = json.loads(
        (image.layout / "blobs" / "sha256" / image.manifest_digest.removeprefix("sha256:")).read_text()
    )
    return {blob["digest"].removeprefix("sha256:") for blob in (manifest["config"], *manifest["layers"])}


@pytest.mark.parametrize("path", [f"{NAME}/team/app:v1", "team/app:v1"])
def test_skopeo(path: str, tmp_path: Path, registry: Registry, image: Image) -> None:
    """By upstream in the path, and by the default upstream; the second pull asks upstream for no blob."""
    with Proxy(tmp_path / "proxy", [], extra_settings=upstream(registry.url, default=True)) as proxy:
        host = proxy.url.removeprefix("http://")
        assert copied(f"{host}/{path}", tmp_path / "one") == expected(image)
        with registry.watched() as requests:
            assert copied(f"{host}/{path}", tmp_path / "two") == expected(image)
    assert [request for request in requests if request.blob] == []


@pytest.mark.parametrize("method", ["htpasswd", "token"])
def test_a_registry_with_a_login(method: str, tmp_path: Path, image: Image) -> None:
    """docker-registry's own two kinds: basic with htpasswd, and bearer with a token server."""
    with Registry(tmp_path / "registry", with_login=True) as filled:
        filled.push(image, "team/app:v1")
        if method == "htpasswd":
            with Proxy(tmp_path / "proxy", [], extra_settings=upstream(filled.url, login=True)) as proxy:
                host = proxy.url.removeprefix("http://")
                assert copied(f"{host}/{NAME}/team/app:v1", tmp_path / "out") == expected(image)
            return
    with TokenServer(tmp_path, username=USERNAME, password=PASSWORD) as tokens:
        with OwnRegistry(tmp_path / "registry", tokens.registry_settings()) as locked:
            with Proxy(tmp_path / "proxy", [], extra_settings=upstream(locked.url, login=True)) as proxy:
                host = proxy.url.removeprefix("http://")
                assert copied(f"{host}/{NAME}/team/app:v1", tmp_path / "out") == expected(image)
    assert tokens.asked == [{"service": "test registry", "scope": "repository:team/app:pull"}]


@pytest.mark.parametrize("where", ["behind", "in front"])
def test_a_chain_of_mirrors(where: str, tmp_path: Path, registry: Registry, image: Image) -> None:
    """docker-registry as a pull-through cache, behind us as our upstream, or in front of us as our client."""
    if where == "behind":
        with OwnRegistry(tmp_path / "cache", f"proxy: {{remoteurl: {registry.url}}}\n") as cache:
            with Proxy(tmp_path / "proxy", [], extra_settings=upstream(cache.url)) as proxy:
                host = proxy.url.removeprefix("http://")
                assert copied(f"{host}/{NAME}/team/app:v1", tmp_path / "out") == expected(image)
        return
    with Proxy(tmp_path / "proxy", [], extra_settings=upstream(registry.url, default=True)) as proxy:
        with OwnRegistry(tmp_path / "cache", f"proxy: {{remoteurl: {proxy.url}}}\n") as cache:
            for out in ("one", "two"):
                assert copied(f"{cache.host}/team/app:v1", tmp_path / out) == expected(image)


@pytest.mark.root
@pytest.mark.containerd
def test_containerd_with_our_hosts_toml(tmp_path: Path, registry: Registry, image: Image) -> None:
    """ctr pulls by the files that we write; with the proxy dead it goes on to the registry itself."""
    with Proxy(tmp_path / "proxy", [], extra_settings=upstream(registry.url)) as proxy, Containerd(tmp_path / "c") as c:
        write_hosts(c.certs, proxy.url, {NAME: registry.url}, dry_run=False)
        pull = ("images", "pull", "--hosts-dir", c.certs, f"{NAME}/team/app:v1")
        with registry.watched() as requests:
            c.ctr(*pull)
        blobs = {request.blob for request in requests if request.blob}
        assert blobs == {f"sha256:{digest}" for digest in expected(image)}
        forget(c)
        with registry.watched() as requests:
            c.ctr(*pull)
        assert [request for request in requests if request.blob] == []
        forget(c)
        proxy.process.kill()
        with registry.watched() as requests:
            c.ctr(*pull)
        assert {request.blob for request in requests if request.blob} == blobs
        proxy.start()


def forget(c: Containerd) -> None:
    c.ctr("images", "rm", "--sync", f"{NAME}/team/app:v1")
    for digest in c.blobs():
        c.ctr("content", "rm", digest)
    c.collect_garbage()  # until then the bytes are there, and containerd takes them instead of a download


@pytest.mark.root
@pytest.mark.containerd
def test_cri(tmp_path: Path, registry: Registry, image: Image) -> None:
    """The kubelet's way, through the mirror and without it."""
    with Proxy(tmp_path / "proxy", [], extra_settings=upstream(registry.url)) as proxy:
        with Containerd(tmp_path / "c", registry_mirrors={NAME: proxy.url}) as c, c.cri() as cri:
            assert cri.pull(f"{NAME}/team/app:v1")
            assert expected(image) <= {digest.removeprefix("sha256:") for digest in c.blobs()}
