"""Images of one small and one larger file each, and a node in front of a proxy that is a fake."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.layers import Content, layer
from fakes.node_api import FakeProxy
from harness.lab import short_directory
from harness.node import Node

from fastpull.fuse_client.cli.connection import DaemonConnection


@pytest.fixture
def root() -> Iterator[Path]:
    with short_directory() as path:
        yield path


class Images:
    """Of a file ``big`` each; ``references`` holds the same bytes in plain files."""

    def __init__(self, references: Path, *, count: int, file_bytes: int) -> None:
        self.proxy = FakeProxy()
        self._references: dict[str, Path] = {}
        references.mkdir()
        for number in range(count):
            content = Content(40_000)
            data = random.Random(number).randbytes(file_bytes)
            entries = [content.file(b"big", data), content.file(b"number", str(number).encode())]
            chain = self.proxy.add_image(f"demo:{number}", [layer(*entries, number=number)], content.chunks)
            self._references[str(chain)] = references / str(number)
            self._references[str(chain)].write_bytes(data)

    def mount_all(self, node: Node) -> dict[Path, Path]:
        """Where each ``big`` can be read now, and the plain file with its bytes. ``node.stop`` unmounts them."""
        daemon = DaemonConnection(node.run_dir)
        return {daemon.mount(chain, "test") / "big": reference for chain, reference in self._references.items()}
