"""Layers become one file tree: what a container sees when overlayfs stacks containerd's unpacked layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fastpull.image.layer_index import EntryType, LayerIndex
from fastpull.image.node import Node, new_directory
from fastpull.image.upper import UpperDirectory


@dataclass(frozen=True, slots=True)
class Tree:
    """A merged tree. Nodes that have several names appear under each of them."""

    root: Node

    def walk(self) -> Iterator[tuple[bytes, Node]]:
        """Every path and its node, parents first, siblings in byte order, the root (``b""``) included."""
        pending: list[tuple[bytes, Node]] = [(b"", self.root)]
        while pending:
            path, node = pending.pop()
            yield path, node
            prefix = path + b"/" if path else b""
            pending.extend((prefix + name, node.children[name]) for name in sorted(node.children, reverse=True))


def merge(layers: Sequence[LayerIndex]) -> Tree:
    """Merge ``layers``, bottom first. Raise ``LayerFormatError`` for a layer that no file system can hold.

    Kernel documentation, filesystems/overlayfs.rst: a whiteout hides a lower name, an opaque directory all
    lower names at its path, a non-directory everything below it; directories merge, with the metadata and
    xattrs of the topmost. A file's link count is that of its own layer's directory: names that upper layers
    hide still count, as they do in overlayfs.
    """
    root = new_directory()
    unpacked: list[UpperDirectory] = []  # topmost first
    for layer in layers:
        upper = UpperDirectory(unpacked, root)
        upper.apply(layer.entries)
        _lay_over(root, upper.root)
        unpacked = [upper, *unpacked]
    return Tree(root)


def _lay_over(merged: Node, upper: Node) -> None:
    """Stack ``upper`` onto ``merged``, which owns its directories and shares all other nodes."""
    if upper.mtime_ns:
        merged.mtime_ns = upper.mtime_ns
    pending = [(merged, upper)]
    while pending:
        into, directory = pending.pop()
        for name, node in directory.children.items():
            if node.type is EntryType.WHITEOUT:
                into.children.pop(name, None)
            elif node.type is not EntryType.DIRECTORY:
                into.children[name] = node
            else:
                target = into.children.get(name)
                if target is None or target.type is not EntryType.DIRECTORY or node.opaque:
                    target = into.children[name] = new_directory()
                target.mode, target.uid, target.gid = node.mode, node.uid, node.gid
                target.mtime_ns, target.xattrs = node.mtime_ns, node.xattrs
                pending.append((target, node))
