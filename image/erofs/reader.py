"""Reads EROFS bootstraps as ``writer.py`` makes them, from any buffer, without copying it.

The bytes may come from anywhere: whatever is wrong with them raises ``IndexFormatError``. Every address is
checked where it is used, and no walk visits a directory twice.
"""

from __future__ import annotations

import mmap
import stat
from collections.abc import Iterator
from typing import NamedTuple, Self

from fastpull.image.erofs import directory, layout, xattr
from fastpull.image.erofs.directory import DirectoryEntry
from fastpull.image.errors import IndexFormatError

Buffer = bytes | bytearray | memoryview | mmap.mmap

_MAX_SYMLINK = layout.BLOCK - 1
_FORMATS = frozenset(layout.EXTENDED | data for data in (layout.FLAT_PLAIN, layout.FLAT_INLINE, layout.CHUNK_BASED))
_INCOMPATIBLE = layout.INCOMPAT_CHUNKED_FILE | layout.INCOMPAT_DEVICE_TABLE


class Inode(NamedTuple):
    """An inode's attributes, as ``lstat`` shows them through the kernel."""

    nid: int
    mode: int  # file type and permissions
    size: int
    uid: int
    gid: int
    mtime_ns: int
    nlink: int
    rdev: tuple[int, int]  # major, minor; (0, 0) if this is no device
    address: int  # first block of the data; of a file's content, on the device
    xattr_bytes: int
    is_inline: bool
    is_on_device: bool

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)

    @property
    def is_symlink(self) -> bool:
        return stat.S_ISLNK(self.mode)


class Extent(NamedTuple):
    """Bytes of the device."""

    offset: int
    size: int


class Bootstrap:
    """An opened bootstrap. Keeps a view of the buffer until ``close``."""

    root: int  # node number
    inodes: int
    blocks: int  # of the bootstrap itself
    uuid: bytes
    device_bytes: int
    device_name: str

    def __init__(self, buffer: Buffer) -> None:
        self._view = memoryview(buffer)
        try:
            self._read_superblock()
        except BaseException:
            self._view.release()
            raise

    @classmethod
    def open(cls, buffer: Buffer) -> Self:
        """Raise ``IndexFormatError`` for bytes that are no bootstrap of this version."""
        return cls(buffer)

    def close(self) -> None:
        """Let go of the buffer, so that a memory map can be closed. Nothing can be read afterwards."""
        self._view.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def inode(self, nid: int) -> Inode:
        """The attributes of node number ``nid``."""
        offset = nid * layout.SLOT
        if not 0 <= offset <= len(self._view) - layout.INODE.size:
            raise IndexFormatError(f"node number {nid} lies outside of the bootstrap")
        (format_, xattr_count, mode, size, address, _, uid, gid, seconds, nanoseconds, nlink) = (
            layout.INODE.unpack_from(self._view, offset)
        )  # fmt: skip
        if format_ not in _FORMATS:
            raise IndexFormatError(f"inode {nid} has the unknown format {format_:#x}")
        if nanoseconds >= 10**9 or size >= 2**63:
            raise IndexFormatError(f"inode {nid} of {size} bytes and {nanoseconds} ns")
        is_device = stat.S_ISCHR(mode) or stat.S_ISBLK(mode)
        xattr_bytes = layout.XATTR_HEADER.size + 4 * (xattr_count - 1) if xattr_count else 0
        is_on_device = format_ == layout.EXTENDED | layout.CHUNK_BASED
        if is_on_device and not stat.S_ISREG(mode):
            raise IndexFormatError(f"inode {nid} is no file, but has content on the device")
        if is_on_device:
            address = self._content_block(nid, size, address, offset + layout.INODE.size + xattr_bytes)
        return Inode(
            nid,
            mode,
            size,
            uid,
            gid,
            seconds * 10**9 + nanoseconds,
            nlink,
            layout.decode_rdev(address) if is_device else (0, 0),
            address,
            xattr_bytes,
            format_ == layout.EXTENDED | layout.FLAT_INLINE,
            is_on_device,
        )

    def lookup(self, path: bytes) -> Inode | None:
        """The inode at ``path`` (relative to the root, ``/`` in front allowed); symlinks are not followed."""
        inode = self.inode(self.root)
        for name in path.split(b"/"):
            if not name:
                continue
            found = self.child(inode, name) if inode.is_directory else None
            if found is None:
                return None
            inode = found
        return inode

    def child(self, parent: Inode, name: bytes) -> Inode | None:
        """The inode called ``name`` in a directory, by bisection over its blocks."""
        low, high = 0, self._block_count(parent)
        while low < high:
            middle = (low + high) // 2
            block = self._block(parent, middle)
            offset, end = directory.name_range(block, 0)
            if block[offset:end] <= name:
                low = middle + 1
            else:
                high = middle
        if low == 0:
            return None
        entry = directory.find(self._block(parent, low - 1), name)
        return self.inode(entry.nid) if entry is not None else None

    def listdir(self, parent: Inode) -> Iterator[DirectoryEntry]:
        """The entries of a directory in byte order, without ``.`` and ``..``."""
        for index in range(self._block_count(parent)):
            for entry in directory.unpack_block(self._block(parent, index)):
                if entry.name not in (b".", b".."):
                    yield entry

    def entries(self, parent: Inode, block: int) -> Iterator[DirectoryEntry]:
        """The entries of one block of a directory as they stand there, ``.`` and ``..`` included.

        Behind the last block there are none.
        """
        if block < self._block_count(parent):
            yield from directory.unpack_block(self._block(parent, block))

    def parent(self, inode: Inode) -> Inode:
        """The directory that holds this directory; the root's is itself."""
        found = self.child(inode, b"..")
        if found is None or not found.is_directory:
            raise IndexFormatError(f"directory {inode.nid} has no parent")
        return found

    def readlink(self, inode: Inode) -> bytes:
        """A symlink's target."""
        if not inode.is_symlink or not 0 < inode.size <= _MAX_SYMLINK:
            raise IndexFormatError(f"inode {inode.nid} is no symlink of at most {_MAX_SYMLINK} bytes")
        return self._block(inode, 0)

    def xattrs(self, inode: Inode) -> dict[bytes, bytes]:
        """Full names and values."""
        start = inode.nid * layout.SLOT + layout.INODE.size
        return xattr.unpack(self._bytes(start, inode.xattr_bytes)) if inode.xattr_bytes else {}

    def content(self, inode: Inode) -> Extent:
        """Where a file's bytes stand on the device."""
        if not inode.is_file or inode.is_on_device == (inode.size == 0):
            raise IndexFormatError(f"inode {inode.nid} is no file with content on the device")
        if not inode.size:
            return Extent(0, 0)
        offset = inode.address * layout.BLOCK
        if offset + inode.size > self.device_bytes:
            raise IndexFormatError(f"the content of inode {inode.nid} lies outside of the device")
        return Extent(offset, inode.size)

    def walk(self, path: bytes = b"") -> Iterator[tuple[bytes, Inode]]:
        """Every path from ``path`` on, itself included, parents first, siblings in byte order.

        A path that does not exist gives nothing. Raise ``IndexFormatError`` for a directory met twice.
        """
        start = self.lookup(path)
        if start is None:
            return
        pending = [(path.strip(b"/"), start)]
        seen: set[int] = set()
        names = 0
        while pending:
            here, inode = pending.pop()
            yield here, inode
            if not inode.is_directory:
                continue
            if inode.nid in seen:
                raise IndexFormatError(f"directory {inode.nid} has two places")
            seen.add(inode.nid)
            names += inode.size // layout.DIRENT.size
            if names > len(self._view) // layout.DIRENT.size:  # directories that share their blocks
                raise IndexFormatError("the directories hold more names than the bootstrap has room for")
            prefix = here + b"/" if here else b""
            children = [(prefix + entry.name, self.inode(entry.nid)) for entry in self.listdir(inode)]
            pending.extend(reversed(children))

    def _read_superblock(self) -> None:
        if len(self._view) < layout.INODES_OFFSET + layout.INODE.size or len(self._view) % layout.BLOCK:
            raise IndexFormatError(f"a bootstrap of {len(self._view)} bytes")
        (
            magic, checksum, _, block_bits, slots, root, inodes, _, _, blocks, inodes_block, xattr_block,
            self.uuid, _, incompatible, _, devices, device_slot,
        ) = layout.SUPERBLOCK.unpack_from(self._view, layout.SUPERBLOCK_OFFSET)  # fmt: skip
        if magic != layout.MAGIC:
            raise IndexFormatError(f"no EROFS image: magic {magic:#x}")
        if checksum != layout.checksum(self._view[: layout.BLOCK]):
            raise IndexFormatError("the checksum of the superblock is wrong")
        expected = (layout.BLOCK_BITS, 0, 0, 0, _INCOMPATIBLE, 1, layout.DEVICE_TABLE_SLOT)
        if (block_bits, slots, inodes_block, xattr_block, incompatible, devices, device_slot) != expected:
            raise IndexFormatError("an EROFS image, but not of the kind that is written here")
        if blocks * layout.BLOCK != len(self._view):
            raise IndexFormatError(f"a bootstrap of {blocks} blocks in {len(self._view)} bytes")
        name, device_blocks, mapped = layout.DEVICE.unpack_from(self._view, 128 * device_slot)
        if mapped < blocks:
            raise IndexFormatError("the device is mapped over the bootstrap")
        self.root, self.inodes, self.blocks = root, inodes, blocks
        self.device_bytes = device_blocks * layout.BLOCK
        self.device_name = name.rstrip(b"\0").decode("ascii", "replace")
        if not self.inode(root).is_directory:
            raise IndexFormatError("the root is no directory")

    def _content_block(self, nid: int, size: int, chunk_format: int, end: int) -> int:
        """The first block of a file's one chunk on the device."""
        if size == 0 or chunk_format != layout.chunk_format(size):
            raise IndexFormatError(f"inode {nid} of {size} bytes has the chunk format {chunk_format:#x}")
        index = self._bytes(layout.index_offset(end), layout.CHUNK_INDEX.size)
        device, block = layout.CHUNK_INDEX.unpack(index)
        if device != layout.CONTENT_DEVICE:
            raise IndexFormatError(f"inode {nid} has its content on device {device}")
        return int(block)

    def _block_count(self, inode: Inode) -> int:
        if not inode.is_directory:
            raise IndexFormatError(f"inode {inode.nid} is no directory")
        if not 0 < inode.size <= len(self._view):
            raise IndexFormatError(f"directory {inode.nid} of {inode.size} bytes")
        return -(-inode.size // layout.BLOCK)

    def _block(self, inode: Inode, index: int) -> bytes:
        """Block ``index`` of the data that an inode has in the bootstrap, cut to its size."""
        size = min(layout.BLOCK, inode.size - index * layout.BLOCK)
        if inode.is_inline and (index + 1) * layout.BLOCK >= inode.size:
            start = inode.nid * layout.SLOT + layout.INODE.size + inode.xattr_bytes
        else:
            start = (inode.address + index) * layout.BLOCK
        return self._bytes(start, size)

    def _bytes(self, start: int, size: int) -> bytes:
        if start < 0 or size < 0 or start + size > len(self._view):
            raise IndexFormatError(f"bytes {start} to {start + size} lie outside of the bootstrap")
        return bytes(self._view[start : start + size])
