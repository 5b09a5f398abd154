"""The registry goes away in the middle of a start: with it the login, and the tag."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest
from fakes.token_server import TokenServer
from harness.checked_readers import CheckedReaders
from harness.fault_rows import Seen
from harness.node import Node
from harness.oci import Image, OciLayout, directory, file
from harness.processes import run
from harness.proxy import Proxy
from harness.registry import PASSWORD, USERNAME, Registry
from harness.waiting import until

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

NAME = "r.test"
DATA = random.Random(5).randbytes(20 << 20)
# Less than the file: chunks have to come from the proxy for ever.
SMALL_CACHE = '[cache]\nmax_bytes = "8 MiB"\n'


class TokenRegistry(Registry):
    """Takes only what the token server has signed."""

    def __init__(self, root: Path, tokens: TokenServer) -> None:
        self._auth = tokens.registry_settings()
        super().__init__(root)

    def _settings(self, root: Path) -> str:
        return super()._settings(root) + self._auth

    def lose_tag(self, root: Path, repository: str, tag: str) -> None:
        shutil.rmtree(root / f"storage/docker/registry/v2/repositories/{repository}/_manifests/tags/{tag}")


def pushed(root: Path) -> Image:
    layout = OciLayout(root / "layout")
    layers = [layout.add_layer([directory("app"), file("app/big", DATA)]), layout.add_layer([file("hello", b"hello")])]
    image = layout.add_image("app:v1", layers)
    with Registry(root / "registry", with_login=True) as registry:
        registry.push(image, "team/app:v1")
    return image


def upstream(url: str) -> str:
    return (
        f'[upstreams."{NAME}"]\nurl = "{url}"\nredirect_private = true\n'
        f'[upstreams."{NAME}".credentials]\nkind = "basic"\nusername = "{USERNAME}"\npassword = "{PASSWORD}"\n'
    )


@pytest.mark.fault(
    "registry: token expired, tag deleted, registry stopped in the middle of a start",
    done="all three while a container reads its image through the node; then kill -9 of the proxy, which starts again",
    promised="reads go on; another node mounts the same image by its digest",
)
def test_nothing_on_the_read_path_needs_the_registry(root: Path, seen: Seen) -> None:
    """Once an image is ingested, it is the proxy's alone."""
    image = pushed(root)
    (root / "reference").write_bytes(DATA)
    with TokenServer(root, username=USERNAME, password=PASSWORD, life_seconds=60) as tokens:
        registry = TokenRegistry(root / "registry", tokens)
        registry.start()
        try:
            proxy = Proxy(root / "proxy", [], extra_settings=upstream(registry.url))
            with proxy, Node(root / "a", [proxy.url], extra_settings=SMALL_CACHE) as node:
                node.command("mount", f"{NAME}/team/app:v1", root / "one")
                with CheckedReaders(root / "ra", {root / "one/app/big": root / "reference"}, readers=4) as readers:
                    before = readers.counts()
                    until(lambda: readers.have_all_read_since(before, reads=5), "the start is under way")
                    registry.lose_tag(root / "registry", "team/app", "v1")
                    tokens.life_seconds = -60  # whatever is asked for now has ended already
                    registry.stop()
                    asked = len(tokens.asked)
                    before = readers.counts()
                    until(lambda: readers.have_all_read_since(before, reads=20), "reads go on")

                    with Node(root / "b", [proxy.url]) as other:
                        other.command("mount", f"{NAME}/team/app@{image.manifest_digest}", root / "two")
                        assert run("cat", root / "two/hello") == "hello"
                        proxy.process.kill()
                        proxy.start()
                        before = readers.counts()
                        until(lambda: readers.have_all_read_since(before, reads=20), "reads go on with a new proxy")
                assert readers.problems == []
                assert len(tokens.asked) == asked, "nobody asks for a token"
                seen(f"{readers.reads} reads without an error, longest {readers.longest_seconds:.1f} s")
        finally:
            registry.stop()
