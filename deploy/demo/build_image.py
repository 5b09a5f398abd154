"""Build a real AI image from packages, as an OCI image layout: no container engine needed.

Debian and its Python, CUDA libraries, PyTorch, transformers, and a program that imports them; one layer
each, as a Dockerfile with one RUN line for each would give. About 4.7 GB and 45,000 files unpacked.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

from isal import igzip_threaded

PACKAGES = ("torch==2.15.0", "transformers==5.24.0")
SITE = "usr/local/lib/python3.11/dist-packages"
DEBIAN = ("python3", "ca-certificates", "libgomp1")
PROGRAM = Path(__file__).with_name("program.py")
RECIPE = 1  # raise when the steps below change: an image of another recipe is built anew

_LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"
_CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
_MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
_PIECE = 1 << 20


@dataclass(frozen=True)
class Layer:
    digest: str
    diff_id: str
    size: int


@dataclass
class Layout:
    """An OCI image layout that is being written (image-spec, image-layout.md)."""

    path: Path
    layers: list[Layer] = field(default_factory=list)

    def __post_init__(self) -> None:
        (self.path / "blobs/sha256").mkdir(parents=True, exist_ok=True)
        (self.path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')

    def add_tar(self, root: Path, members: Sequence[str]) -> None:
        """Append one layer: these paths of ``root`` and all below them, in a stable order."""
        command = ["tar", "--create", "--format=pax", "--sort=name", "--numeric-owner", "--xattrs"]
        command += ["--pax-option=delete=atime,delete=ctime", f"--directory={root}", "--files-from=-"]
        partial = self.path / "layer.partial"
        diff = hashlib.sha256()
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as tar:
            stdin, stdout = cast(BinaryIO, tar.stdin), cast(BinaryIO, tar.stdout)
            stdin.write("\n".join(members).encode())
            stdin.close()
            with igzip_threaded.open(str(partial), "wb", threads=2, compresslevel=1) as out:
                while piece := stdout.read(_PIECE):
                    diff.update(piece)
                    out.write(piece)
        if tar.returncode:
            raise SystemExit(f"tar failed for {list(members)[:3]} …")
        digest = _sha256_of(partial)
        partial.rename(self.path / "blobs/sha256" / digest)
        size = (self.path / "blobs/sha256" / digest).stat().st_size
        self.layers.append(Layer(f"sha256:{digest}", f"sha256:{diff.hexdigest()}", size))
        print(f"  layer {len(self.layers)}: {size / 1e6:7.1f} MB  {digest[:12]}", flush=True)

    def finish(self, tag: str, config: dict[str, Any]) -> None:
        """Write config, manifest and index."""
        config = {
            "architecture": "amd64",
            "os": "linux",
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in self.layers]},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": _MANIFEST_TYPE,
            "config": self._put_json(config, _CONFIG_TYPE),
            "layers": [{"mediaType": _LAYER_TYPE, "digest": x.digest, "size": x.size} for x in self.layers],
        }
        entry = self._put_json(manifest, _MANIFEST_TYPE)
        entry["annotations"] = {"org.opencontainers.image.ref.name": tag}
        index = {"schemaVersion": 2, "manifests": [entry]}
        (self.path / "index.json").write_text(json.dumps(index))

    def _put_json(self, document: dict[str, Any], media_type: str) -> dict[str, Any]:
        body = json.dumps(document, sort_keys=True).encode()
        digest = hashlib.sha256(body).hexdigest()
        (self.path / "blobs/sha256" / digest).write_bytes(body)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(body)}


def build(out: Path, *, packages: Sequence[str] = PACKAGES, tag: str = "v1") -> Path:
    """Build the image below ``out``, unless the same one is there; return the layout's path."""
    recipe = json.dumps([RECIPE, packages, DEBIAN, PROGRAM.read_text()])
    name = hashlib.sha256(recipe.encode()).hexdigest()[:12]
    layout = out / f"image-{name}"
    if (layout / "index.json").exists():
        return layout
    out.mkdir(parents=True, exist_ok=True)
    with _scratch(out) as scratch:
        print(f"building the image in {layout}", flush=True)
        root = scratch / "rootfs"
        _debian(root)
        base = sorted(p.name for p in root.iterdir())
        writer = Layout(scratch / "layout")
        writer.add_tar(root, base)
        _install(root, packages, cache=out / "wheels")
        for members in _split(root):
            writer.add_tar(root, members)
        target = root / "app/program.py"
        target.parent.mkdir()
        shutil.copy(PROGRAM, target)
        writer.add_tar(root, ["app"])
        writer.finish(
            tag,
            {"Env": ["PATH=/usr/local/bin:/usr/bin:/bin", "HOME=/root"], "Cmd": ["python3", "/app/program.py"]},
        )
        shutil.rmtree(layout, ignore_errors=True)
        writer.path.rename(layout)
    return layout


def _debian(root: Path) -> None:
    print("  Debian and its Python (mmdebstrap)", flush=True)
    _run("mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(DEBIAN)}", "bookworm", str(root))
    for path in ("dev", "proc", "sys"):  # what a container gets from its runtime
        shutil.rmtree(root / path)
        (root / path).mkdir()


def _install(root: Path, packages: Sequence[str], *, cache: Path) -> None:
    print(f"  packages: {' '.join(packages)}", flush=True)
    cache.mkdir(exist_ok=True)
    platform = ["--python-version=3.11", "--implementation=cp", "--only-binary=:all:"]
    platform += [f"--platform=manylinux_2_{minor}_x86_64" for minor in (28, 27, 26, 25, 24, 18, 17, 12)]
    platform += ["--platform=manylinux2014_x86_64", "--platform=manylinux1_x86_64", "--platform=linux_x86_64"]
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input"]
    _run(*pip, "download", *platform, f"--dest={cache}", f"--find-links={cache}", *packages)
    _run(
        *pip, "install", *platform, "--no-index", f"--find-links={cache}", "--no-compile", "--root-user-action=ignore",
        f"--target={root / SITE}", *packages,
    )  # fmt: skip
    # Byte code as a build inside the image would leave it: made by the image's own Python.
    # Exit code 1: some packages carry templates and tests that are no valid Python; that is no failure.
    _run("chroot", str(root), "python3", "-m", "compileall", "-qq", f"/{SITE}", ok=(0, 1))
    if not list((root / SITE).glob("torch/__pycache__/__init__.*.pyc")):
        raise SystemExit("the packages' byte code was not compiled")


def _split(root: Path) -> Iterator[list[str]]:
    """The installed packages as three layers: CUDA libraries, PyTorch, the rest."""
    names = sorted(p.name for p in (root / SITE).iterdir())
    cuda = [n for n in names if n.startswith("nvidia")]
    torch = [n for n in names if n.startswith(("torch", "triton"))]
    rest = [n for n in names if n not in {*cuda, *torch}]
    for group in (cuda, torch, rest):
        if group:
            yield [f"{SITE}/{name}" for name in group]


@contextmanager
def _scratch(parent: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="build-", dir=parent) as name:
        yield Path(name)


def _run(*command: str, ok: tuple[int, ...] = (0,)) -> None:
    done = subprocess.run(command, check=False, stdin=subprocess.DEVNULL)
    if done.returncode not in ok:
        raise SystemExit(f"{command[0]} failed with exit code {done.returncode}: {' '.join(command)[:200]}")


def _sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="where the image and the downloaded packages are kept")
    parser.add_argument("--package", action="append", help="instead of the default package set; may be repeated")
    parser.add_argument("--tag", default="v1")
    args = parser.parse_args()
    print(build(args.out, packages=args.package or PACKAGES, tag=args.tag))


if __name__ == "__main__":
    main()
