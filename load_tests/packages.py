"""Real Python packages, downloaded once and unpacked as an image's layers would hold them."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

SITE = "usr/local/lib/python3.11/dist-packages"
_PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (28, 27, 24, 17, 12)] + ["manylinux2014_x86_64"]
_PIECE = 1 << 20


def wheel(requirement: str, cache: Path) -> Path:
    """The wheel of ``name==version``, without what it depends on."""
    directory = cache / "wheels" / requirement
    if not (found := sorted(directory.glob("*.whl"))):
        directory.mkdir(parents=True, exist_ok=True)
        platforms = [f"--platform={name}" for name in _PLATFORMS]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--only-binary=:all:", "--python-version=3.11", *platforms, f"--dest={directory}", requirement]
        subprocess.run(command, check=True)
        found = sorted(directory.glob("*.whl"))
    return found[0]


def files_of(path: Path) -> Iterator[bytes]:
    """The content of each file of a wheel."""
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if not info.is_dir():
                yield archive.read(info)


@dataclass(frozen=True, slots=True)
class LayerFile:
    """A gzipped layer on disk."""

    path: Path
    digest: str
    diff_id: str
    tar_bytes: int


def layer(name: str, requirements: Sequence[str], cache: Path) -> LayerFile:
    """The packages as one layer, byte code included, gzipped at the level that image builders use."""
    root, tar, blob = cache / name / "root", cache / name / "layer.tar", cache / name / "layer.tar.gz"
    if not blob.exists():
        site = root / SITE
        site.mkdir(parents=True, exist_ok=True)
        for requirement in requirements:
            with zipfile.ZipFile(wheel(requirement, cache)) as archive:
                archive.extractall(site)
        subprocess.run([sys.executable, "-m", "compileall", "-qq", site], check=False)  # some files are templates
        command = ["tar", "--create", "--format=pax", "--sort=name", "--owner=0", "--group=0", "--numeric-owner"]
        subprocess.run([*command, f"--directory={root}", f"--file={tar}", "."], check=True)
        partial = blob.with_suffix(".partial")
        with partial.open("wb") as out:
            subprocess.run(["gzip", "-6", "--stdout", "--no-name", tar], stdout=out, check=True)
        partial.rename(blob)
    return LayerFile(blob, sha256_of(pieces_of(blob)), sha256_of(pieces_of(tar)), tar.stat().st_size)


def pieces_of(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            yield piece


def sha256_of(pieces: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return f"sha256:{digest.hexdigest()}"
