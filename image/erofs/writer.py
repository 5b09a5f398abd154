"""A file tree becomes an EROFS bootstrap. Pure, reproducible. The layout is in ``layout.py``.

Two passes. The first gives every inode its place: a directory's children stand together, in name order, so
that ``ls -l`` and ``find`` read the bootstrap nearly in sequence; what a directory's or symlink's data does
not fill of a block is given to the inodes that follow. The second writes, as every node number is known then.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from fastpull.image.erofs import layout, xattr
from fastpull.image.erofs.directory import pack_block, split
from fastpull.image.errors import LimitExceededError
from fastpull.image.layer_index import EntryType
from fastpull.image.node import Node
from fastpull.image.tree import Tree

# Node type → (file type bits of the mode, type in directory entries)
_KIND = {
    EntryType.FILE: (stat.S_IFREG, layout.TYPE_FILE),
    EntryType.DIRECTORY: (stat.S_IFDIR, layout.TYPE_DIRECTORY),
    EntryType.SYMLINK: (stat.S_IFLNK, layout.TYPE_SYMLINK),
    EntryType.CHARACTER: (stat.S_IFCHR, layout.TYPE_CHARACTER),
    EntryType.BLOCK: (stat.S_IFBLK, layout.TYPE_BLOCK),
    EntryType.FIFO: (stat.S_IFIFO, layout.TYPE_FIFO),
}


def write_bootstrap(tree: Tree, content: Mapping[Node, int], device_bytes: int, name: bytes) -> bytes:
    """The EROFS image of ``tree``.

    ``content`` gives each file that is not empty its place on the device, in bytes, block aligned;
    ``device_bytes`` is the device's size. ``name`` (32 bytes) names the chain: it becomes the image's UUID
    and the device's name.

    Raise ``LimitExceededError`` if xattrs, a device number, or bootstrap and device together (16 TiB) are
    more than the format can hold.
    """
    places = _Places()
    places.fill(tree.root)
    blocks = places.blocks
    device_blocks = -(-device_bytes // layout.BLOCK)
    if blocks + device_blocks > layout.MAX_BLOCKS:
        raise LimitExceededError(f"{device_bytes} bytes of file content; an EROFS image holds 16 TiB")
    image = bytearray(blocks * layout.BLOCK)
    for serial, (node, place) in enumerate(places.of.items(), 1):
        if node.type is EntryType.FILE:
            address = layout.chunk_format(node.size) if node.size else layout.NO_ADDRESS
        elif node.type in (EntryType.CHARACTER, EntryType.BLOCK):
            address = _rdev(node)
        else:
            address = place.address
        _write_inode(image, node, place, address, serial)
        if node.type is EntryType.DIRECTORY:
            _write_directory(image, places.directories[node], place, places.of)
        elif node.type is EntryType.SYMLINK:
            at = place.end if place.is_inline else place.address * layout.BLOCK
            image[at : at + len(node.link)] = node.link
        elif node.type is EntryType.FILE and node.size:
            block = content[node] // layout.BLOCK
            layout.CHUNK_INDEX.pack_into(image, layout.index_offset(place.end), layout.CONTENT_DEVICE, block)
    layout.DEVICE.pack_into(image, 128 * layout.DEVICE_TABLE_SLOT, name.hex().encode(), device_blocks, blocks)
    _write_superblock(image, blocks, places.of[tree.root].offset // layout.SLOT, len(places.of), name)
    return bytes(image)


class _Place(msgspec.Struct, gc=False, eq=False):
    """Where one inode and its data stand."""

    offset: int  # of the inode, in bytes
    xattrs: bytes
    size: int  # what stat shows
    nlink: int
    is_inline: bool = False
    address: int = layout.NO_ADDRESS  # first block of data that is not inline

    @property
    def end(self) -> int:
        """Behind the xattrs: inline data, if any, or soon the index."""
        return self.offset + layout.INODE.size + len(self.xattrs)


@dataclass(slots=True)
class _Directory:
    names: list[bytes]  # sorted, with "." and ".."
    nodes: list[Node]  # of the names
    starts: list[int]  # index of the first name of each block


class _Places:
    """The first pass."""

    def __init__(self) -> None:
        self.of: dict[Node, _Place] = {}
        self.directories: dict[Node, _Directory] = {}
        self._end = layout.INODES_OFFSET
        self._gap = (0, 0)  # bytes left over before self._end: start, end
        self._waiting: list[tuple[_Place, int]] = []  # places that need whole blocks, and how many

    @property
    def blocks(self) -> int:
        """Length of the image."""
        return -(-self._end // layout.BLOCK)

    def fill(self, root: Node) -> None:
        self._place_directory(root, root)
        pending = [root]
        while pending:
            parent = pending.pop()
            subdirectories = []
            directory = self.directories[parent]
            for name, node in zip(directory.names, directory.nodes, strict=True):
                if node.type is not EntryType.DIRECTORY:
                    if node not in self.of:
                        self._place(node, node.size, node.link)
                elif name not in (b".", b".."):
                    self._place_directory(node, parent)
                    subdirectories.append(node)
            pending.extend(reversed(subdirectories))
        for place, blocks in self._waiting:
            place.address = self.blocks
            self._end = (place.address + blocks) * layout.BLOCK

    def _place_directory(self, node: Node, parent: Node) -> None:
        names = [b".", b"..", *node.children]
        names.sort()
        children = {**node.children, b".": node, b"..": parent}
        starts, tail = split(names)
        self.directories[node] = _Directory(names, [children[name] for name in names], starts)
        full = len(starts) - 1
        place = self._reserve(node, full * layout.BLOCK + tail, tail)
        place.nlink = 2 + sum(child.type is EntryType.DIRECTORY for child in node.children.values())
        blocks = full if place.is_inline else full + 1
        if blocks:
            self._waiting.append((place, blocks))

    def _place(self, node: Node, size: int, link: bytes) -> None:
        place = self._reserve(node, size or len(link), len(link))
        if link and not place.is_inline:
            self._waiting.append((place, 1))

    def _reserve(self, node: Node, size: int, tail: int) -> _Place:
        """Find room for the inode, with ``tail`` bytes of inline data if they can stand within one block."""
        xattrs = xattr.pack(node.xattrs) if node.xattrs else b""
        fixed = layout.INODE.size + len(xattrs)
        # The kernel wants inline data within one block; an inode may cross, but is quicker read if it does not.
        is_inline = 0 < tail <= layout.BLOCK - fixed % layout.BLOCK
        needed = fixed + tail if is_inline else fixed
        if node.type is EntryType.FILE and size:
            needed = layout.index_offset(fixed) + layout.CHUNK_INDEX.size  # never across blocks, as it is aligned
        gap_start, gap_end = self._gap
        if needed <= gap_end - gap_start:
            offset = gap_start
            self._gap = (_aligned(offset + needed), gap_end)
        else:
            offset = self._end
            in_block = offset % layout.BLOCK
            crosses = in_block + layout.INODE.size > layout.BLOCK or (
                is_inline and (offset + fixed) % layout.BLOCK + tail > layout.BLOCK
            )
            if crosses:
                offset += layout.BLOCK - in_block
                self._gap = (self._end, offset)
            self._end = _aligned(offset + needed)
        place = self.of[node] = _Place(offset, xattrs, size, node.nlink, is_inline)
        return place


def _aligned(offset: int) -> int:
    return offset + -offset % layout.SLOT


def _write_inode(image: bytearray, node: Node, place: _Place, address: int, serial: int) -> None:
    seconds, nanoseconds = divmod(node.mtime_ns, 10**9)
    layout.INODE.pack_into(
        image,
        place.offset,
        layout.EXTENDED | _data_layout(node, place),
        (len(place.xattrs) - layout.XATTR_HEADER.size) // 4 + 1 if place.xattrs else 0,
        _KIND[node.type][0] | node.mode,
        place.size,
        address,
        serial,
        node.uid,
        node.gid,
        seconds,
        nanoseconds,
        place.nlink,
    )
    if place.xattrs:
        at = place.offset + layout.INODE.size
        image[at : at + len(place.xattrs)] = place.xattrs


def _data_layout(node: Node, place: _Place) -> int:
    if place.is_inline:
        return layout.FLAT_INLINE
    return layout.CHUNK_BASED if node.type is EntryType.FILE and node.size else layout.FLAT_PLAIN


def _write_directory(image: bytearray, directory: _Directory, place: _Place, places: Mapping[Node, _Place]) -> None:
    starts = directory.starts
    for block, start in enumerate(starts):
        stop = starts[block + 1] if block + 1 < len(starts) else len(directory.names)
        entries = (
            (name, places[node].offset // layout.SLOT, _KIND[node.type][1])
            for name, node in zip(directory.names[start:stop], directory.nodes[start:stop], strict=True)
        )
        packed = pack_block(entries, stop - start)
        is_tail = place.is_inline and block == len(starts) - 1
        at = place.end if is_tail else (place.address + block) * layout.BLOCK
        image[at : at + len(packed)] = packed


def _write_superblock(image: bytearray, blocks: int, root: int, inodes: int, name: bytes) -> None:
    for checksum in (0, None):
        layout.SUPERBLOCK.pack_into(
            image,
            layout.SUPERBLOCK_OFFSET,
            layout.MAGIC,
            layout.checksum(image) if checksum is None else checksum,
            layout.COMPAT_CHECKSUM | layout.COMPAT_MTIME,
            layout.BLOCK_BITS,
            0,
            root,  # placed first, within the 65,536 slots that its field can name
            inodes,
            0,
            0,
            blocks,
            0,
            0,
            name[:16],
            layout.VOLUME,
            layout.INCOMPAT_CHUNKED_FILE | layout.INCOMPAT_DEVICE_TABLE,
            0,
            1,
            layout.DEVICE_TABLE_SLOT,
        )


def _rdev(node: Node) -> int:
    if not (0 <= node.major < 2**12 and 0 <= node.minor < 2**20):
        raise LimitExceededError(f"device number {node.major}:{node.minor}; Linux has 12 and 20 bits")
    return layout.encode_rdev(node.major, node.minor)
