"""The inode of a file tree that is being built: mutable, shared by all names of a hardlinked file."""

from __future__ import annotations

from fastpull.image.layer_index import Entry, EntryType

Xattrs = tuple[tuple[bytes, bytes], ...]  # full names ("security.capability"), sorted by name

_NO_CHILDREN: dict[bytes, Node] = {}  # of everything but directories, never written to: a dict each costs 64 bytes


class Node:
    """One inode. Compared and hashed by identity: two names with the same node are hardlinks."""

    __slots__ = (
        "children",
        "chunks",
        "gid",
        "link",
        "major",
        "minor",
        "mode",
        "mtime_ns",
        "nlink",
        "opaque",
        "size",
        "type",
        "uid",
        "xattrs",
    )

    def __init__(self, type_: EntryType, mode: int, uid: int, gid: int, mtime_ns: int, xattrs: Xattrs = ()) -> None:
        self.type = type_  # never HARDLINK or OPAQUE; WHITEOUT only inside one layer
        self.mode = mode  # 0 … 0o7777
        self.uid = uid
        self.gid = gid
        self.mtime_ns = mtime_ns
        self.xattrs = xattrs
        self.nlink = 1  # directories: not kept here, it follows from their children
        self.size = 0
        self.chunks = b""  # CHUNK_REF after CHUNK_REF
        self.link = b""  # symlink target
        self.major = 0
        self.minor = 0
        self.opaque = False  # a directory that hides what lower layers have at its path
        self.children: dict[bytes, Node] = {} if type_ is EntryType.DIRECTORY else _NO_CHILDREN

    @classmethod
    def of(cls, entry: Entry, type_: EntryType, mtime_ns: int, xattrs: Xattrs) -> Node:
        """The inode that ``entry`` describes, with everything but children."""
        node = cls(type_, entry.mode & 0o7777, entry.uid, entry.gid, mtime_ns, xattrs)
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
