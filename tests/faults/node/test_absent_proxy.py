"""A proxy that is not there: under readers, for longer than they may wait, and when the node boots."""

from __future__ import annotations

import errno
import os
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from harness.checked_readers import CheckedReaders
from harness.fault_rows import Seen
from harness.node import Node
from harness.oci import OciLayout, file
from harness.proxy import Proxy
from harness.registry import Registry
from harness.waiting import until

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

LOCAL = random.Random(1).randbytes(4 << 20)
REMOTE = random.Random(2).randbytes(8 << 20)
AWAY_SECONDS = 5.0


@dataclass
class Setup:
    root: Path
    proxy: Proxy
    image: str

    def node(self, settings: str = "") -> Node:
        return Node(self.root / "n", [self.proxy.url], extra_settings=settings)

    def mounted(self, node: Node) -> Path:
        """With ``local`` in the node's cache and ``remote`` not."""
        node.command("mount", self.image, self.root / "mnt")
        assert (self.root / "mnt/local").read_bytes() == LOCAL
        return self.root / "mnt"


@pytest.fixture
def setup(root: Path) -> Iterator[Setup]:
    layout = OciLayout(root / "layout")
    image = layout.add_image("app:v1", [layout.add_layer([file("local", LOCAL), file("remote", REMOTE)])])
    (root / "local").write_bytes(LOCAL)
    with Registry(root / "registry") as registry:
        name = registry.push(image, "app:v1")
        with Proxy(root / "proxy", [registry]) as proxy:
            proxy.warm(name)
            yield Setup(root, proxy, name)


@pytest.mark.fault(
    "proxy: away under readers",
    done="kill -9 while some read what is local and one reads what is not; started again after 5 s",
    promised="who reads local data notices nothing; the other waits and goes on when the proxy is back",
)
def test_only_readers_of_what_is_not_here_wait_for_the_proxy(setup: Setup, seen: Seen) -> None:
    """And they get the right bytes in the end."""
    got: list[bytes] = []
    with setup.node() as node:
        mount = setup.mounted(node)
        with CheckedReaders(setup.root / "r", {mount / "local": setup.root / "local"}, readers=4) as readers:
            until(lambda: readers.reads > 20, "they read")
            setup.proxy.process.kill()
            waiting = threading.Thread(target=lambda: got.append((mount / "remote").read_bytes()), daemon=True)
            waiting.start()
            before = readers.counts()
            time.sleep(AWAY_SECONDS)
            assert readers.have_all_read_since(before, reads=20)
            assert waiting.is_alive(), "nothing of it is here"
            local_seconds = readers.longest_seconds
            back = time.monotonic()
            setup.proxy.start()
            waiting.join(60)
            waited = time.monotonic() - back
        assert readers.problems == []
    assert got == [REMOTE]
    assert local_seconds < AWAY_SECONDS, "a local read never waits for a proxy"
    seen(f"local reads {local_seconds * 1000:.0f} ms at most, the other done {waited:.1f} s after the new start began")


@pytest.mark.fault(
    "proxy: away for longer than fetch.retry_seconds",
    done="kill -9, a read of what is not local with fetch.retry_seconds = 3",
    promised="that read fails after its time, and no other; it works when the proxy is back",
)
def test_after_its_time_a_read_fails_and_only_that_read(setup: Setup, seen: Seen) -> None:
    """The mount, the daemon and what is local are as before."""
    with setup.node("[fetch]\nretry_seconds = 3.0\n") as node:
        mount = setup.mounted(node)
        with CheckedReaders(setup.root / "r", {mount / "local": setup.root / "local"}, readers=4) as readers:
            setup.proxy.process.kill()
            began = time.monotonic()
            with pytest.raises(OSError, match=os.strerror(errno.EIO)):
                (mount / "remote").read_bytes()
            failed_after = time.monotonic() - began
            before = readers.counts()
            until(lambda: readers.have_all_read_since(before, reads=20), "local reads go on")
            setup.proxy.start()
            until(lambda: node.status()["proxies"][0]["is_up"], "the node has noticed that it is back")
            assert (mount / "remote").read_bytes() == REMOTE
        assert readers.problems == []
    assert failed_after >= 3.0
    seen(f"EIO after {failed_after:.1f} s, {readers.reads} local reads without an error")


@pytest.mark.fault(
    "proxy: not there when the node boots",
    done="the node daemon starts first, an image is asked for, then the proxy starts",
    promised="the daemon serves at once and says what is missing; the same image can be mounted without a restart",
)
def test_the_node_may_boot_before_the_proxy(setup: Setup) -> None:
    """containerd's side of it: ``test_everything_is_pulled_as_always_while_the_proxy_is_away``."""
    setup.proxy.process.kill()
    with setup.node() as node:
        assert node.socket.exists()
        with pytest.raises(AssertionError, match=setup.proxy.url):
            node.command("mount", setup.image, setup.root / "mnt")
        setup.proxy.start()
        assert (setup.mounted(node) / "remote").read_bytes() == REMOTE
