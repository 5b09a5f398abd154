"""Images as OCI layout directories, built from tar entries, with any compression.

Streaming: a layer may be larger than memory.

    layout = OciLayout(tmp / "layout")
    layer = layout.add_layer([directory("etc"), file("etc/motd", b"hello\n")], compression="zstd")
    image = layout.add_image("demo:1", [layer], entrypoint=["/tool"])
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, NamedTuple

import zstandard

from fastpull.cache.digest import Digest, chain_ids

Compression = Literal["none", "gzip", "gzip-members", "zstd", "zstd-frames"]

_PIECE = 1 << 20  # what is read at once, and the content of one member or frame
_SUFFIX = {"none": "", "gzip": "+gzip", "gzip-members": "+gzip", "zstd": "+zstd", "zstd-frames": "+zstd"}
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}
ARCHITECTURE = _MACHINES.get(platform.machine(), platform.machine())


class TarEntry(NamedTuple):
    info: tarfile.TarInfo
    content: bytes = b""


@dataclass(frozen=True, slots=True)
class Layer:
    """A blob of a layout."""

    digest: str
    size: int  # of the blob, compressed
    diff_id: str
    media_type: str


@dataclass(frozen=True, slots=True)
class Image:
    """An image of a layout, under the name it has there."""

    layout: Path
    name: str
    manifest_digest: str
    layers: tuple[Layer, ...]

    @property
    def chain_ids(self) -> list[Digest]:
        """The chainID of every prefix; the last is the image's."""
        return chain_ids(Digest.parse(layer.diff_id) for layer in self.layers)


# -------------------------------------------------------------------------------------------- entries


def entry(path: str, kind: bytes, *, mode: int, content: bytes = b"", **attributes: object) -> TarEntry:
    """Any entry. ``attributes`` are those of ``tarfile.TarInfo`` (uid, gid, mtime, pax_headers, …)."""
    info = tarfile.TarInfo(path)
    info.type, info.mode, info.size, info.mtime = kind, mode, len(content), 1_600_000_000
    for name, value in attributes.items():
        setattr(info, name, value)
    return TarEntry(info, content)


def file(path: str, content: bytes = b"", *, mode: int = 0o644, **attributes: object) -> TarEntry:
    return entry(path, tarfile.REGTYPE, mode=mode, content=content, **attributes)


def directory(path: str, *, mode: int = 0o755, **attributes: object) -> TarEntry:
    return entry(path, tarfile.DIRTYPE, mode=mode, **attributes)


def symlink(path: str, target: str, **attributes: object) -> TarEntry:
    return entry(path, tarfile.SYMTYPE, mode=0o777, linkname=target, **attributes)


def hardlink(path: str, target: str, **attributes: object) -> TarEntry:
    return entry(path, tarfile.LNKTYPE, mode=0o644, linkname=target, **attributes)


def device(path: str, major: int, minor: int, *, mode: int = 0o600, block: bool = False) -> TarEntry:
    return entry(path, tarfile.BLKTYPE if block else tarfile.CHRTYPE, mode=mode, devmajor=major, devminor=minor)


def whiteout(path: str) -> TarEntry:
    """Remove what a lower layer has at ``path``."""
    parent, _, name = path.rpartition("/")
    return file(f"{parent}/.wh.{name}" if parent else f".wh.{name}")


def opaque(path: str) -> TarEntry:
    """Hide what lower layers have in the directory ``path``."""
    return file(f"{path}/.wh..wh..opq")


def tar_bytes(entries: Iterable[TarEntry]) -> bytes:
    """The tar of a small layer."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, content in entries:
            archive.addfile(info, io.BytesIO(content) if info.isreg() else None)
    return buffer.getvalue()


# --------------------------------------------------------------------------------------------- layout


class OciLayout:
    def __init__(self, root: Path) -> None:
        self.root = root
        self._blobs = root / "blobs" / "sha256"
        self._blobs.mkdir(parents=True, exist_ok=True)
        (root / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        self._manifests: dict[str, dict[str, object]] = {}

    def add_layer(
        self, entries: Iterable[TarEntry], *, compression: Compression = "gzip", level: int | None = None
    ) -> Layer:
        return self.add_tar(io.BytesIO(tar_bytes(entries)), compression=compression, level=level)

    def add_tar(self, tar: IO[bytes], *, compression: Compression = "gzip", level: int | None = None) -> Layer:
        """A layer from a tar stream, as it is, whatever it holds."""
        diff_id, digest, size = hashlib.sha256(), hashlib.sha256(), 0
        unfinished = self.root / "unfinished"
        with unfinished.open("wb") as blob:
            pieces = _observed(iter(lambda: tar.read(_PIECE), b""), diff_id.update)
            for data in _compress(pieces, compression, level):
                digest.update(data)
                size += blob.write(data)
        unfinished.rename(self._blobs / digest.hexdigest())
        media_type = f"application/vnd.oci.image.layer.v1.tar{_SUFFIX[compression]}"
        return Layer(f"sha256:{digest.hexdigest()}", size, f"sha256:{diff_id.hexdigest()}", media_type)

    def add_blob(self, data: bytes) -> str:
        """Any blob, as it is; returns its digest."""
        digest = Digest.of(data)
        (self._blobs / digest.hex).write_bytes(data)
        return str(digest)

    def add_image(
        self,
        name: str,
        layers: Sequence[Layer],
        *,
        entrypoint: Sequence[str] = ("/tool",),
        command: Sequence[str] = (),
        env: Sequence[str] = ("PATH=/",),
        config: dict[str, object] | None = None,
        diff_ids: Sequence[str] | None = None,
    ) -> Image:
        """``diff_ids`` overrides the true ones, for images that lie."""
        wanted = list(diff_ids) if diff_ids is not None else [layer.diff_id for layer in layers]
        run = {"Entrypoint": list(entrypoint), "Cmd": list(command), "Env": list(env), **(config or {})}
        image_config = {
            "architecture": ARCHITECTURE,
            "os": "linux",
            "config": run,
            "rootfs": {"type": "layers", "diff_ids": wanted},
            "history": [{"created_by": "test"} for _ in layers],
        }
        encoded = json.dumps(image_config).encode()
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": self.add_blob(encoded),
                "size": len(encoded),
            },
            "layers": [{"mediaType": layer.media_type, "digest": layer.digest, "size": layer.size} for layer in layers],
        }
        data = json.dumps(manifest).encode()
        digest = self.add_blob(data)
        self._manifests[name] = {
            "mediaType": manifest["mediaType"],
            "digest": digest,
            "size": len(data),
            "annotations": {"org.opencontainers.image.ref.name": name},
        }
        index = {"schemaVersion": 2, "manifests": list(self._manifests.values())}
        (self.root / "index.json").write_text(json.dumps(index))
        return Image(self.root, name, digest, tuple(layers))


def _observed(pieces: Iterator[bytes], observe: Callable[[bytes], object]) -> Iterator[bytes]:
    for piece in pieces:
        observe(piece)
        yield piece


def _compress(pieces: Iterator[bytes], compression: Compression, level: int | None) -> Iterator[bytes]:
    if compression == "none":
        yield from pieces
    elif compression == "gzip":
        yield from _stream(pieces, _gzip(level))
    elif compression == "zstd":
        yield from _stream(pieces, zstandard.ZstdCompressor(level=level or 3).compressobj())
    else:  # many members or frames; at least one, also of nothing
        first = next(pieces, b"")
        for piece in _chain(first, pieces):
            one = _gzip(level) if compression == "gzip-members" else zstandard.ZstdCompressor(level or 3).compressobj()
            yield from _stream(iter((piece,)), one)


class _Compressor:
    """What ``zlib`` and ``zstandard`` have in common."""

    compress: Callable[[bytes], bytes]
    flush: Callable[[], bytes]


def _stream(pieces: Iterator[bytes], compressor: _Compressor) -> Iterator[bytes]:
    for piece in pieces:
        yield compressor.compress(piece)
    yield compressor.flush()


def _gzip(level: int | None) -> _Compressor:
    return zlib.compressobj(level=6 if level is None else level, wbits=31)  # type: ignore[return-value]


def _chain(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest
