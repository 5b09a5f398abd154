"""What containerd leaves in the directory of one layer: the ``upperdir`` that overlayfs later stacks.

containerd unpacks every layer into a directory of its own (``pkg/archive/tar.go``, ``applyNaive``, with
``OverlayConvertWhiteout``); overlayfs merges these directories. Whoever wants the same tree has to go the
same way, because a layer's own directory decides where an entry lands:

- Symlinks in an entry's parents are followed inside *this layer only* (``fs.RootPath``). Where ``a`` is a
  symlink of a lower layer, the entry ``a/b`` makes a real directory ``a`` that hides the symlink.
- Parents that no entry made get the owner, mode and xattrs of the topmost lower layer that has the path
  (``mkparent``), else 0755 root:root, or the group of a set-group-id parent. Their mtime is the moment of
  unpacking in containerd; here, so that the result is reproducible, it is that of the lower directory, else
  that of the entry that needed them.
- An existing name is removed first, unless old and new are directories: then only the metadata changes.
- A hardlink's own owner, mode, mtime and xattrs are applied to the shared inode; the chown in between drops
  ``security.capability``, as the kernel does.
- Directory times are set when the layer is done, by path.
- The root directory's entry is skipped: the root is 0755 root:root without xattrs in every snapshot. Only
  its mtime is taken here (containerd: moment of unpacking).
- Times before 1970 and after 2262 become 1970 (``boundTime``); ``trusted.*`` and unknown xattr namespaces
  are not set, ``user.*`` only on files and directories.
- A character device 0:0 *is* overlayfs' whiteout.

Where containerd gives up although the meaning is clear, the entry is taken: a hardlink to a file of a lower
layer shares that file's inode, a whiteout after its own layer's entry of that name changes nothing.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Sequence

from fastpull.image.errors import LayerFormatError, LimitExceededError
from fastpull.image.layer_index import Entry, EntryType
from fastpull.image.node import Node, Xattrs, new_directory, new_node, new_whiteout

_MAX_NAME = 255
_MAX_TARGET = 4095
_MAX_LINKS = 255  # symlinks followed in one path; continuity/fs/path.go
_MAX_SWEEP_STEPS = 10**6  # about 0.2 s; layers that need any are broken
_MAX_TIME_NS = 2**63 - 1
_MAX_ID = 2**32 - 1
_ACL_ACCESS = b"system.posix_acl_access"
_ACL_DEFAULT = b"system.posix_acl_default"
_CAPABILITY = b"security.capability"


class UpperDirectory:
    """One layer, unpacked over ``lowers`` (topmost first) whose merged tree is ``below``."""

    def __init__(self, lowers: Sequence[UpperDirectory], below: Node) -> None:
        self.root = new_directory()
        self._lowers = lowers
        self._below = below
        # Path as entries spell it → its directory. Valid until a directory or symlink is removed.
        self._directories: dict[bytes, Node] = {b"": self.root}
        self._directory_times: list[tuple[bytes, int]] = []
        self._implied_nodes: set[Node] = set()  # lowest layer: directories without an entry of their own
        self._sweep_steps = 0

    def apply(self, entries: Iterable[Entry]) -> None:
        """Unpack ``entries`` in order. Raise ``LayerFormatError`` for what no file system can hold,
        ``LimitExceededError`` for what takes for ever."""
        for entry in entries:
            self._apply(entry)
        for path, mtime_ns in self._directory_times:
            node = self._directories.get(path) or self._follow(path)
            if node is not None:
                node.mtime_ns = mtime_ns

    def _apply(self, entry: Entry) -> None:
        _check(entry)
        if entry.type is EntryType.OPAQUE:
            self._make_opaque(self._directory(entry.path, entry))
            return
        parent_path, _, name = entry.path.rpartition(b"/")
        if len(name) < 3 or len(name) > _MAX_NAME:
            _checked_name(name)
        if not name:
            if entry.type is EntryType.DIRECTORY:
                self.root.mtime_ns = _bounded(entry.mtime_ns)
            return
        parent = self._directory(parent_path, entry)
        existing = parent.children.get(name)
        if entry.type is EntryType.WHITEOUT:
            if not self._lowers:
                self._remove(parent, name)
            elif existing is None:
                parent.children[name] = new_whiteout()
        elif entry.type is EntryType.DIRECTORY and existing is not None and existing.type is EntryType.DIRECTORY:
            self._implied_nodes.discard(existing)
            existing.mode, existing.uid, existing.gid = entry.mode & 0o7777, entry.uid, entry.gid
            existing.xattrs = _merged(existing.xattrs, _settable(entry.xattrs, EntryType.DIRECTORY))
            self._directory_times.append((entry.path, _bounded(entry.mtime_ns)))
        else:
            self._remove(parent, name)
            parent.children[name] = self._created(entry)

    def _make_opaque(self, directory: Node) -> None:
        if self._lowers:
            directory.opaque = True  # on the root it has no effect, as in overlayfs
            return
        # The lowest layer is unpacked in place: what no entry of it has made so far is removed.
        pending = [directory] if self._implied_nodes else []
        while pending:
            parent = pending.pop()
            self._sweep_steps += len(parent.children)
            if self._sweep_steps > _MAX_SWEEP_STEPS:
                raise LimitExceededError(f"opaque marks over more than {_MAX_SWEEP_STEPS} names")
            for name, node in list(parent.children.items()):
                if node in self._implied_nodes:
                    self._remove(parent, name)
                elif node.type is EntryType.DIRECTORY:
                    pending.append(node)

    def _created(self, entry: Entry) -> Node:
        type_ = entry.type
        if type_ is EntryType.HARDLINK:
            return self._linked(entry)
        mtime_ns = _bounded(entry.mtime_ns)
        xattrs = _settable(entry.xattrs, type_) if entry.xattrs else ()
        if type_ is EntryType.DIRECTORY:
            self._directory_times.append((entry.path, mtime_ns))
            return new_directory(entry.mode & 0o7777, entry.uid, entry.gid, mtime_ns, xattrs)
        if type_ is EntryType.CHARACTER and entry.major == entry.minor == 0:
            return new_whiteout()
        return new_node(entry, mtime_ns, xattrs)

    def _linked(self, entry: Entry) -> Node:
        parent_path, _, name = entry.link.rpartition(b"/")
        parent = self._follow(parent_path)
        target = parent.children.get(name) if parent is not None else None
        if target is None or target.type is EntryType.WHITEOUT:
            parent = _follow(self._below, parent_path)
            target = parent.children.get(name) if parent is not None else None
        if target is None or target.type is EntryType.DIRECTORY:
            problem = "is a directory" if target is not None else "does not exist"
            raise LayerFormatError(f"hardlink {entry.path!r}: its target {entry.link!r} {problem}")
        target.nlink += 1
        target.uid, target.gid, target.mtime_ns = entry.uid, entry.gid, _bounded(entry.mtime_ns)
        if target.type is not EntryType.SYMLINK:
            target.mode = entry.mode & 0o7777
        kept = tuple(pair for pair in target.xattrs if pair[0] != _CAPABILITY)
        target.xattrs = _merged(kept, _settable(entry.xattrs, target.type))
        return target

    def _directory(self, path: bytes, entry: Entry) -> Node:
        """The directory at ``path``, symlinks followed, absent ones made (``mkparent``)."""
        found = self._directories.get(path)
        if found is not None:
            return found
        names = _resolved(self.root, path)
        node = self.root
        for depth, name in enumerate(names, 1):
            child = node.children.get(name)
            if child is None:
                child = node.children[_checked_name(name)] = self._implied(names[:depth], node, entry)
            elif child.type is not EntryType.DIRECTORY:
                at = b"/".join(names[:depth])
                raise LayerFormatError(f"{entry.path!r} needs the directory {at!r}, which is something else")
            node = child
        self._directories[path] = node
        return node

    def _implied(self, names: list[bytes], parent: Node, entry: Entry) -> Node:
        for lower in self._lowers:
            found = _follow(lower.root, b"/".join(names))
            if found is not None:
                if found.type is not EntryType.DIRECTORY:
                    break
                return new_directory(found.mode, found.uid, found.gid, found.mtime_ns, found.xattrs)
        gid = parent.gid if parent.mode & stat.S_ISGID else 0  # mkdir(2) inherits it
        node = new_directory(gid=gid, mtime_ns=_bounded(entry.mtime_ns))
        if not self._lowers:
            self._implied_nodes.add(node)
        return node

    def _follow(self, path: bytes) -> Node | None:
        return self._directories.get(path) or _follow(self.root, path)

    def _remove(self, parent: Node, name: bytes) -> None:
        node = parent.children.pop(name, None)
        if node is None:
            return
        if node.type in (EntryType.DIRECTORY, EntryType.SYMLINK):
            self._directories = {b"": self.root}
        doomed = [node]
        while doomed:
            node = doomed.pop()
            node.nlink -= 1
            doomed.extend(node.children.values())


def _follow(root: Node, path: bytes) -> Node | None:
    """What stands at ``path`` after following every symlink inside ``root``.

    A path through something that is no directory gives that something.
    """
    node = root
    for name in _resolved(root, path):
        if node.type is not EntryType.DIRECTORY:
            return node
        child = node.children.get(name)
        if child is None:
            return None
        node = child
    return node


def _resolved(root: Node, path: bytes) -> list[bytes]:
    """The names of ``path`` with all symlinks replaced; absent ones are kept (``fs.RootPath``).

    ``..`` in a target is taken off the text, as Go's ``filepath.Join`` does, and never leaves the root.
    """
    pending = [name for name in reversed(path.split(b"/")) if name]
    names: list[bytes] = []
    node: Node | None = root
    links = 0
    while pending:
        name = pending.pop()
        child = node.children.get(name) if node is not None else None
        if child is not None and child.type is EntryType.SYMLINK:
            links += 1
            if links > _MAX_LINKS:
                raise LayerFormatError(f"{path!r} leads through more than {_MAX_LINKS} symlinks")
            target = [] if child.link.startswith(b"/") else names
            for part in child.link.split(b"/"):
                if part == b"..":
                    target = target[:-1]
                elif part not in (b"", b"."):
                    target = [*target, part]
            pending.extend(reversed(target))
            names, node = [], root
        else:
            names.append(name)
            node = child
    return names


def _check(entry: Entry) -> None:
    if b"\0" in entry.path or b"\0" in entry.link:
        raise LayerFormatError(f"{entry.path!r} holds a NUL byte")
    if not (0 <= entry.uid <= _MAX_ID and 0 <= entry.gid <= _MAX_ID):
        raise LayerFormatError(f"{entry.path!r} belongs to {entry.uid}:{entry.gid}; ids have 32 bits")
    if entry.type is EntryType.SYMLINK and not 0 < len(entry.link) <= _MAX_TARGET:
        raise LayerFormatError(
            f"symlink {entry.path!r} has a target of {len(entry.link)} bytes; 1 to {_MAX_TARGET} fit"
        )


def _checked_name(name: bytes) -> bytes:
    if len(name) > _MAX_NAME:
        raise LayerFormatError(f"the name {name[:40]!r}… has {len(name)} bytes; file systems hold {_MAX_NAME}")
    if name in (b".", b".."):
        raise LayerFormatError(f"{name!r} is no name; the paths of an index are normalised")
    return name


def _bounded(mtime_ns: int) -> int:
    return mtime_ns if 0 <= mtime_ns <= _MAX_TIME_NS else 0


def _settable(xattrs: Xattrs, type_: EntryType) -> Xattrs:
    def is_settable(name: bytes) -> bool:
        if name.startswith(b"user."):
            return type_ in (EntryType.FILE, EntryType.DIRECTORY)
        if name == _ACL_ACCESS:
            return type_ is not EntryType.SYMLINK
        if name == _ACL_DEFAULT:
            return type_ is EntryType.DIRECTORY
        return name.startswith(b"security.")

    return tuple((name, value) for name, value in xattrs if is_settable(name))


def _merged(old: Xattrs, new: Xattrs) -> Xattrs:
    return tuple(sorted({**dict(old), **dict(new)}.items())) if old else new
