"""Everything together: a registry, the proxy, a node and a containerd that pulls through them.

with Stack(directory) as stack:
    image = stack.registry.push(layout.add_image(...), "demo:1")
    stack.proxy.warm(image)
    stack.cri.pull(image)
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Self

from harness.containerd import Containerd
from harness.cri import CriClient
from harness.mounts import unmount_all_below
from harness.node import Node
from harness.proxy import Proxy
from harness.registry import Registry


class Stack:
    """``root`` should be short (unix sockets end after 107 bytes). Needs root."""

    def __init__(
        self,
        root: Path,
        *,
        registry: Registry | None = None,
        proxy: Proxy | None = None,
        driver: str = "auto",
        sandbox_image: str = "",
        proxy_settings: str = "",
        node_settings: str = "",
    ) -> None:
        """``registry``, ``proxy``: those that run already; otherwise the stack has its own."""
        self.root = root
        self._owns_registry = registry is None
        self.registry = registry or Registry(root / "registry")
        self._owns_proxy = proxy is None
        self.proxy = proxy or Proxy(root / "proxy", [self.registry], extra_settings=proxy_settings)
        # Where containerd expects a snapshotter of this name: CRI of 1.6 looks nowhere else.
        data = root / "ctd" / "data" / "io.containerd.snapshotter.v1.fastpull"
        self.node = Node(root / "node", [self.proxy.url], data=data, driver=driver, extra_settings=node_settings)
        self.containerd = Containerd(
            root / "ctd",
            snapshotter_socket=self.node.socket,
            snapshotter_root=data,
            sandbox_image=sandbox_image,
            registry_mirrors={self.registry.host: self.proxy.url},
        )
        self.cri: CriClient
        self._running = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.callback(unmount_all_below, self.root)
            if self._owns_registry:
                stack.enter_context(self.registry)
            if self._owns_proxy:
                stack.enter_context(self.proxy)
            stack.enter_context(self.node)
            stack.enter_context(self.containerd)
            self.cri = stack.enter_context(self.containerd.cri())
            self._running = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()
