"""An image behind a fake proxy, a place for a node that mounts it, and what a reader must find in it."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

from fakes.layers import Content, directory, hardlink, layers, symlink
from fakes.node_api import FakeProxy

from harness.processes import run

CHUNK_BYTES = 40_000


class SampleImage:
    """``demo:1``: small files, a big one, a symbolic and a hard link; ``other:1``: one file. Known to ``proxy``."""

    def __init__(self, *, small_files: int, big_bytes: int) -> None:
        rng = random.Random(7)
        content = Content(CHUNK_BYTES)
        self.files = {f"lib/m{n:03}.py".encode(): rng.randbytes(rng.randrange(20_000)) for n in range(small_files)}
        self.files[b"big"] = rng.randbytes(big_bytes)
        entries = [directory(b"lib"), *(content.file(path, data) for path, data in self.files.items())]
        entries += [symlink(b"usr", b"lib"), hardlink(b"lib/same.py", b"lib/m000.py")]
        self.files[b"lib/same.py"] = self.files[b"lib/m000.py"]
        self.proxy = FakeProxy()
        self.chain = self.proxy.add_image("demo:1", layers(entries), content.chunks)
        other = Content(CHUNK_BYTES)
        self.other = self.proxy.add_image("other:1", layers([], [other.file(b"hello", b"other\n")]), other.chunks)

    def sums(self) -> str:
        """What ``sums`` must find where ``demo:1`` is mounted."""
        return "".join(
            f"{hashlib.sha256(data).hexdigest()}  ./{path.decode()}\n" for path, data in sorted(self.files.items())
        )


def sums(path: Path) -> str:
    """The checksums of all files, as ``sha256sum`` prints them, sorted by path."""
    return run("sh", "-c", "find . -type f | LC_ALL=C sort | xargs sha256sum", cwd=path, seconds=120)
