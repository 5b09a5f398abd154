"""A proxy that is stopped, not dead: connections are taken and never answered."""

from __future__ import annotations

import os
import random
import signal
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

DATA = random.Random(6).randbytes(20 << 20)
# Less than the file, so that chunks have to come from a proxy for ever.
SETTINGS = '[cache]\nmax_bytes = "8 MiB"\n[fetch]\nrequest_timeout_seconds = 2.0\n'


@pytest.mark.fault(
    "proxy: hangs",
    done="SIGSTOP of the first of two proxies under readers, later SIGCONT, then SIGSTOP of the second",
    promised="reads wait for fetch.request_timeout_seconds and go on with the other proxy; the first is used again "
    "when it answers",
)
def test_a_proxy_that_hangs_is_passed_over(root: Path, seen: Seen) -> None:
    """Both ways: away from the preferred one, and back to it."""
    layout = OciLayout(root / "layout")
    image = layout.add_image("app:v1", [layout.add_layer([file("big", DATA)])])
    (root / "reference").write_bytes(DATA)
    with Registry(root / "registry") as registry:
        name = registry.push(image, "app:v1")
        with Proxy(root / "one", [registry]) as one, Proxy(root / "two", [registry]) as two:
            two.warm(name)
            with Node(root / "n", [one.url, two.url], extra_settings=SETTINGS) as node:
                node.command("mount", name, root / "mnt")
                with CheckedReaders(root / "readers", {root / "mnt/big": root / "reference"}, readers=4) as readers:
                    for hung, goes_on in ((one, two), (two, one)):
                        goes_on.process.kill(signal.SIGCONT)
                        until(lambda proxy=goes_on: is_up(node, proxy), "the node uses it")  # type: ignore[misc]
                        hung.process.kill(signal.SIGSTOP)
                        before = readers.counts()
                        until(
                            lambda before=before: readers.have_all_read_since(before, reads=20),  # type: ignore[misc]
                            "reads go on with the other proxy",
                        )
                    two.process.kill(signal.SIGCONT)
                assert readers.problems == []
                seen(f"{readers.reads} reads without an error, longest {readers.longest_seconds:.1f} s")


def is_up(node: Node, proxy: Proxy) -> bool:
    return {state["url"]: state["is_up"] for state in node.status()["proxies"]}[proxy.url]
