"""Small images that run: a static program, so that nothing else is needed in them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from harness.oci import Compression, Image, Layer, OciLayout, TarEntry, directory, file
from harness.processes import run
from harness.registry import Registry

TOOL_SOURCE = Path(__file__).with_name("tool.c")


def build_tool(target: Path) -> Path:
    """Compile ``tool.c``: see there what it can do."""
    run("gcc", "-static", "-O2", "-o", target, TOOL_SOURCE)
    return target


def base_entries(tool: Path) -> list[TarEntry]:
    """The least that a container needs: its program, the mount points of a runtime, two users."""
    return [
        *(directory(name) for name in ("dev", "etc", "proc", "run", "sys")),
        directory("tmp", mode=0o1777),
        file("etc/passwd", b"root:x:0:0:root:/:/tool\nbob:x:1000:1000::/:/tool\n"),
        file("etc/group", b"root:x:0:\nbob:x:1000:\n"),
        file("tool", tool.read_bytes(), mode=0o755),
    ]


class ImageMaker:
    """Builds and pushes images to one registry. Every image is new to it: its own name, its own first layer."""

    def __init__(self, root: Path, registry: Registry) -> None:
        self.registry = registry
        self.layout = OciLayout(root / "layout")
        self.tool = build_tool(root / "tool")
        self._numbers = itertools.count(1)
        self._images: dict[str, Image] = {}

    def push(self, *layers: Sequence[TarEntry], compression: Compression = "gzip") -> str:
        """An image of a base layer and the given ones; returns its reference."""
        unique = file("etc/image", f"{next(self._numbers)} of {self.registry.port}\n".encode())
        made = [self.layout.add_layer([*base_entries(self.tool), unique], compression=compression)]
        made += [self.layout.add_layer(entries, compression=compression) for entries in layers]
        return self.push_layers(made)

    def push_layers(self, layers: Sequence[Layer], *, diff_ids: Sequence[str] | None = None) -> str:
        name = f"test/image-{next(self._numbers)}:1"
        image = self.layout.add_image(name.replace("/", "-").replace(":", "-"), layers, diff_ids=diff_ids)
        reference = self.registry.push(image, name)
        self._images[reference] = image
        return reference

    def image(self, reference: str) -> Image:
        """What was pushed under the reference."""
        return self._images[reference]
