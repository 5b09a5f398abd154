"""The one directory that a session serves: names, node ids, devices. Pure.

The kernel keeps the node ids of open files for as long as the mount lives, which is longer than a daemon
does. So an id is a function of the name alone, and a new daemon serves an old open file as soon as it has
registered the name again.
"""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterator

import msgspec

from fastpull.fuse_client.session.answers import Attributes, DirEntry
from fastpull.fuse_client.session.errors import NodeIdCollisionError
from fastpull.fuse_client.session.files import DeviceFile
from fastpull.fuse_client.session.protocol import NAME_MAX, ROOT_ID

_FIRST_ID = 16  # below: the kernel's (0, 1) and the cookies of "." and ".."
_DIRECTORY_MODE = stat.S_IFDIR | 0o500
_FILE_MODE = stat.S_IFREG | 0o400


def node_id(name: str) -> int:
    """The node id and inode number of a device: 63 bits, because listings use it as a signed offset."""
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return max(int.from_bytes(digest, "little") >> 1, _FIRST_ID)


class Node(msgspec.Struct, frozen=True):
    """A registered device."""

    id: int
    name: bytes
    device: DeviceFile

    @property
    def attributes(self) -> Attributes:
        return Attributes(ino=self.id, mode=_FILE_MODE, size=self.device.size)


class Directory:
    """Which node id stands for which device."""

    def __init__(self) -> None:
        self._nodes: dict[int, Node] = {}

    def __len__(self) -> int:
        return len(self._nodes)

    def __iter__(self) -> Iterator[Node]:
        return iter(self._nodes.values())

    @property
    def attributes(self) -> Attributes:
        return Attributes(ino=ROOT_ID, mode=_DIRECTORY_MODE, size=0, links=2)

    def add(self, name: str, device: DeviceFile) -> Node:
        """Register, or replace what had the name. Raise ``ValueError`` for what is no file name."""
        encoded = name.encode()
        if not 0 < len(encoded) <= NAME_MAX or "/" in name or "\0" in name or name in {".", ".."}:
            raise ValueError(f"{name!r} is no file name")
        node = Node(node_id(name), encoded, device)
        other = self._nodes.get(node.id)
        if other is not None and other.name != encoded:
            raise NodeIdCollisionError(name, other.name.decode())
        self._nodes[node.id] = node
        return node

    def remove(self, name: str) -> None:
        """Forget the name; one that is not there is fine."""
        self._nodes.pop(node_id(name), None)

    def get(self, id_: int) -> Node | None:
        return self._nodes.get(id_)

    def find(self, name: bytes) -> Node | None:
        try:
            node = self._nodes.get(node_id(name.decode()))
        except UnicodeDecodeError:
            return None
        return node if node is not None and node.name == name else None

    def entries(self, after: int) -> Iterator[DirEntry]:
        """The listing, from behind the entry with the cookie ``after`` (0 = from the start).

        Cookies are ids in ascending order: a listing stays right while devices come and go, and needs no
        state that a restart would lose.
        """
        for cookie, name in ((1, b"."), (2, b"..")):
            if cookie > after:
                yield DirEntry(ROOT_ID, name, _DIRECTORY_MODE, cookie)
        for id_ in sorted(self._nodes):
            if id_ > after:
                yield DirEntry(id_, self._nodes[id_].name, _FILE_MODE, id_)
