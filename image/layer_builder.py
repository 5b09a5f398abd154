"""A layer's tar → entries and chunks. Pure: whoever calls decides where chunks go.

An entry says what the tar says, in the tar's order; what that means on disk (parents that nobody made,
an entry given twice, symlinks on the way) is decided where layers become a tree, ``upper.py``. Decided here,
because it concerns one header alone, and as containerd's ``pkg/archive/tar.go`` decides it:

- Names are cleaned like Go's ``filepath.Clean``; ``.wh.x`` removes ``x``, ``.wh..wh..opq`` hides what lower
  layers have in its directory, whatever type and content the member has.
- A member that is the root itself is ignored, unless it is a directory (its time counts).
- Owners have 32 bits, device numbers 12 and 20, as the system calls take them.
- Types that containerd refuses to unpack are refused, with one exception: old GNU sparse files are taken.

Stricter than containerd, which moves such names into the root: what leaves the root is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from fastpull.cache.digest import ChunkId, chunk_id
from fastpull.image.chunking import MIN_BYTES, Buffer, Chunk, Chunker
from fastpull.image.errors import LayerFormatError, LimitExceededError, UnsafeEntryError
from fastpull.image.layer_index import CHUNK_REF, Entry, EntryType
from fastpull.image.limits import LayerLimits
from fastpull.image.tar_header import TarHeader
from fastpull.image.tar_stream import read_tar

_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
_TYPES = {
    b"0": EntryType.FILE,
    b"1": EntryType.HARDLINK,
    b"2": EntryType.SYMLINK,
    b"3": EntryType.CHARACTER,
    b"4": EntryType.BLOCK,
    b"5": EntryType.DIRECTORY,
    b"6": EntryType.FIFO,
}
_DEVICES = (EntryType.CHARACTER, EntryType.BLOCK)
_ID_BITS = 2**32 - 1
_TIME_BITS = range(-(2**63), 2**63)
_MAX_NAME = 255  # of one component, in every file system that matters
_MAX_XATTR_NAME = 255
_MAX_XATTR_BYTES = 65536
MAX_METADATA_BYTES = 512 << 20  # paths, link targets and xattrs of a layer; they are held in memory

Keep = Callable[[ChunkId, Buffer], None]
"""Takes a chunk's id and its content, which may be a view that keeps a larger buffer alive."""


@dataclass(frozen=True, slots=True)
class LayerContent:
    entries: list[Entry]
    content_bytes: int  # sum of the files' sizes


def read_layer(pieces: Iterable[bytes], keep: Keep, limits: LayerLimits) -> LayerContent:
    """Read a layer's tar, hand every chunk of its files to ``keep``, return what is in it.

    A chunk that occurs several times is handed over several times. All pieces are taken, unless an error is
    raised: ``LayerFormatError``, ``UnsafeEntryError`` or ``LimitExceededError``.
    """
    builder = _Builder(keep, limits)
    entries = builder.entries
    pack = CHUNK_REF.pack
    for event in read_tar(pieces):
        if type(event) is memoryview:
            if builder.file is None:
                continue
            if len(event) == builder.missing <= MIN_BYTES and builder.chunks is None:
                # Most files of most layers: one buffer, one chunk.
                chunk = chunk_id(event)
                keep(chunk, event)
                header = builder.file
                builder.file = None
                entries.append(builder.entry(header, EntryType.FILE, pack(chunk, len(event))))
            else:
                builder.content(event)
        elif type(event) is TarHeader:
            builder.member(event)
        elif builder.file is not None:
            builder.hole(event.size)
    return LayerContent(entries, builder.content_bytes)


class _Builder:
    """Invariant: ``file`` is the member whose content is awaited, ``missing`` bytes of it, ``path`` its path."""

    def __init__(self, keep: Keep, limits: LayerLimits) -> None:
        self.entries: list[Entry] = []
        self.content_bytes = 0
        self.metadata_bytes = 0
        self.file: TarHeader | None = None
        self.missing = 0
        self.chunks: bytearray | None = None  # of a file that comes in several parts
        self._path = b""
        self._keep = keep
        self._limits = limits
        self._chunker = Chunker()

    def member(self, header: TarHeader) -> None:
        self.file = None
        path = clean(header.name, self._limits.max_path_bytes)
        name = path[path.rfind(b"/") + 1 :]
        if len(self.entries) >= self._limits.max_entries:
            raise LimitExceededError(f"more than {self._limits.max_entries} entries; see ingest.max_entries")
        self.metadata_bytes += len(path) + len(header.link) + sum(len(value) for _, value in header.xattrs)
        if self.metadata_bytes > MAX_METADATA_BYTES:
            raise LimitExceededError(f"names and xattrs of more than {MAX_METADATA_BYTES} bytes")
        self._path = path
        if name.startswith(_WHITEOUT):
            self._whiteout(path, name, header)
            return
        if header.flag == b"0":
            if not path:
                return
            self.content_bytes += header.size
            self._limits.check_bytes(self.content_bytes, "the layer's files")
            if header.size:
                self.file, self.missing, self.chunks = header, header.size, None
            else:
                self.entries.append(self.entry(header, EntryType.FILE))
            return
        type_ = _TYPES.get(header.flag)
        if not path and type_ is not EntryType.DIRECTORY:
            return
        if type_ is None:
            raise LayerFormatError(f"{path!r} is of type {header.flag!r}, which containerd does not unpack")
        self.entries.append(self.entry(header, type_))

    def content(self, part: memoryview) -> None:
        self.missing -= len(part)
        if not self.missing and self.chunks is None:
            self._add(self._chunker.whole(part))
        else:
            self._add(self._chunker.feed(part))
        self._complete()

    def hole(self, size: int) -> None:
        self.missing -= size
        self._add(self._chunker.feed_zeros(size))
        self._complete()

    def entry(self, header: TarHeader, type_: EntryType, chunks: bytes = b"") -> Entry:
        """The entry of ``header``, whose path is ``_path``."""
        uid, gid, mtime_ns = header.uid, header.gid, _time(header.mtime_ns)
        if not 0 <= uid < _ID_BITS or not 0 <= gid < _ID_BITS:
            uid, gid = _owner(uid), _owner(gid)
        if header.xattrs:
            _check_xattrs(self._path, header)
        if type_ is EntryType.FILE or type_ is EntryType.DIRECTORY:
            size = header.size
            return Entry(
                self._path, type_, header.mode & 0o7777, uid, gid, mtime_ns, size, xattrs=header.xattrs, chunks=chunks
            )
        link = b""
        if type_ is EntryType.SYMLINK:
            link = header.link
            if not 0 < len(link) <= self._limits.max_path_bytes:
                raise LayerFormatError(f"symlink {self._path!r} has a target of {len(link)} bytes")
        elif type_ is EntryType.HARDLINK:
            link = clean(header.link, self._limits.max_path_bytes)
            if not link:
                raise LayerFormatError(f"hardlink {self._path!r} to the root directory")
        return Entry(
            self._path,
            type_,
            0o777 if type_ is EntryType.SYMLINK else header.mode & 0o7777,
            uid,
            gid,
            mtime_ns,
            link=link,
            major=header.major & 0xFFF if type_ in _DEVICES else 0,
            minor=header.minor & 0xFFFFF if type_ in _DEVICES else 0,
            xattrs=header.xattrs,
        )

    def _whiteout(self, path: bytes, name: bytes, header: TarHeader) -> None:
        parent = path[: -len(name)]
        mtime_ns = _time(header.mtime_ns)  # for parents that nobody made
        if name == _OPAQUE:
            self.entries.append(Entry(parent[:-1], EntryType.OPAQUE, mtime_ns=mtime_ns))
            return
        removed = name[len(_WHITEOUT) :]
        if removed in (b"", b".", b".."):
            raise UnsafeEntryError(f"whiteout {path!r} names no entry of its directory")
        self.entries.append(Entry(parent + removed, EntryType.WHITEOUT, mtime_ns=mtime_ns))

    def _add(self, chunks: Iterable[Chunk]) -> None:
        refs = self.chunks
        if refs is None:
            refs = self.chunks = bytearray()
        pack = CHUNK_REF.pack
        for chunk, data in chunks:
            self._keep(chunk, data)
            refs += pack(chunk, len(data))

    def _complete(self) -> None:
        if not self.missing and self.file is not None:
            self._add(self._chunker.finish())
            self.entries.append(self.entry(self.file, EntryType.FILE, bytes(self.chunks or b"")))
            self.file = self.chunks = None


def clean(name: bytes, max_bytes: int = 4096) -> bytes:
    """A name of a tar as the path of an entry: relative to the root, normalised; ``b""`` is the root.

    Like Go's ``filepath.Clean`` for an absolute path. Raise ``UnsafeEntryError`` for a name that leaves the
    root on its way, ``LimitExceededError`` for a path of more than ``max_bytes``, ``LayerFormatError`` for a
    component that no file system takes.
    """
    path = name[2:] if name.startswith(b"./") else name
    if path.endswith(b"/"):
        path = path[:-1]
    if path.startswith((b"/", b".")) or b"//" in path or b"/." in path or path.endswith(b"/"):
        parts: list[bytes] = []
        for part in path.split(b"/"):
            if part == b"..":
                if not parts:
                    raise UnsafeEntryError(f"{name[:200]!r} leaves the root file system")
                parts.pop()
            elif part not in (b"", b"."):
                parts.append(part)
        path = b"/".join(parts)
    if len(path) > max_bytes:
        raise LimitExceededError(f"a path of {len(path)} bytes; ingest.max_path_bytes is {max_bytes}")
    if len(path) > _MAX_NAME and max(map(len, path.split(b"/"))) > _MAX_NAME:
        raise LayerFormatError(f"{path[:80]!r}… has a component of more than {_MAX_NAME} bytes")
    return path


def _owner(number: int) -> int:
    """What chown makes of it: the low 32 bits, and all ones leave the owner as it was, root."""
    low = number & _ID_BITS
    return 0 if low == _ID_BITS else low


def _time(mtime_ns: int) -> int:
    """Nanoseconds that fit 64 bits; containerd sets 1970 for what does not."""
    return mtime_ns if mtime_ns in _TIME_BITS else 0


def _check_xattrs(path: bytes, header: TarHeader) -> None:
    for name, value in header.xattrs:
        if not 0 < len(name) <= _MAX_XATTR_NAME or len(value) > _MAX_XATTR_BYTES:
            raise LayerFormatError(
                f"{path!r} has an xattr {name[:80]!r} of {len(value)} bytes; "
                f"names have 1 to {_MAX_XATTR_NAME} bytes, values up to {_MAX_XATTR_BYTES}"
            )
