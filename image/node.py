"""The inode of a file tree that is being built: mutable, shared by all names of a hardlinked file."""

from __future__ import annotations

import msgspec

from fastpull.image.layer_index import Entry, EntryType

Xattrs = tuple[tuple[bytes, bytes], ...]  # full names ("security.capability"), sorted by name

_NO_CHILDREN: dict[bytes, Node] = {}  # of everything but directories, never written to: a dict each costs 64 bytes
_DIRECTORY = EntryType.DIRECTORY


class Node(msgspec.Struct, gc=False, eq=False):
    """One inode. Compared and hashed by identity: two names with the same node are hardlinks.

    A struct without ``gc``, as trees have no cycles: merging 50,000 entries took a third less time than with a
    plain class.
    """

    type: EntryType  # never HARDLINK or OPAQUE; WHITEOUT only inside one layer
    mode: int  # 0 … 0o7777
    uid: int
    gid: int
    mtime_ns: int
    xattrs: Xattrs
    children: dict[bytes, Node]
    nlink: int = 1  # directories: not kept here, it follows from their children
    size: int = 0
    chunks: bytes = b""  # CHUNK_REF after CHUNK_REF
    link: bytes = b""  # symlink target
    major: int = 0
    minor: int = 0
    opaque: bool = False  # a directory that hides what lower layers have at its path


def new_directory(mode: int = 0o755, uid: int = 0, gid: int = 0, mtime_ns: int = 0, xattrs: Xattrs = ()) -> Node:
    return Node(_DIRECTORY, mode, uid, gid, mtime_ns, xattrs, {})


def new_whiteout() -> Node:
    return Node(EntryType.WHITEOUT, 0, 0, 0, 0, (), _NO_CHILDREN)


def new_node(entry: Entry, mtime_ns: int, xattrs: Xattrs) -> Node:
    """The inode that ``entry``, which is no directory, describes."""
    type_ = entry.type
    node = Node(type_, entry.mode & 0o7777, entry.uid, entry.gid, mtime_ns, xattrs, _NO_CHILDREN)
    if type_ is EntryType.FILE:
        node.size = entry.size
        node.chunks = entry.chunks
    elif type_ is EntryType.SYMLINK:
        node.mode = 0o777  # Linux knows no other mode of a symlink
        node.link = entry.link
    elif type_ in (EntryType.CHARACTER, EntryType.BLOCK):
        node.major = entry.major
        node.minor = entry.minor
    return node
