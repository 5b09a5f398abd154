"""What the kernel asks of a mounted tree, answered from the bootstrap; content comes from elsewhere.

Nothing is remembered between requests: inode numbers and file handles are node numbers, positions in a
directory are places in its blocks. What the kernel was told is true for ever, and it is told so: attributes,
names, and names that do not exist, never time out, and cached content is kept over closes. What stays: one
request for each open, close, listing and readlink (pyfuse3 offers neither FOPEN_CACHE_DIR, nor
CAP_CACHE_SYMLINKS, nor opens without a message, as reads would not say of which inode they are).
"""

# ruff: noqa: ARG002 - pyfuse3 says which arguments there are

from __future__ import annotations

import asyncio
import errno
import logging
import os
import stat
from collections.abc import Sequence
from typing import Protocol

from fastpull.fuse_client.portable.guard import answered, unanswered
from fastpull.fuse_client.portable.library import pyfuse3
from fastpull.fuse_client.portable.listings import Listings
from fastpull.fuse_client.portable.tree import END, Tree, place_at, position_of
from fastpull.image.erofs import layout
from fastpull.image.erofs.reader import Inode
from fastpull.image.errors import IndexFormatError

log = logging.getLogger(__name__)

_FOR_EVER = 2.0**31  # seconds; the kernel takes no infinity
_TRUSTED = b"trusted."
# Of directories, that are kept ready: 430 bytes each, 56 MB at most. Each directory also has its two dots, and counts
# one. A second walk over a tree with more builds all of it again: with 48,700 entries in 5,500 directories that was
# 2.0 s of CPU instead of 0.8.
_KEPT_ENTRIES = 131_072
_INODES_AT_ONCE = 64


class Content(Protocol):
    """The bytes of the chain's device."""

    async def read(self, offset: int, length: int) -> bytes:
        """All ``length`` bytes, in bounded time. Raise ``ReadRefusedError`` or ``DaemonAwayError``."""
        ...


class TreeOperations(pyfuse3.Operations):
    """``pyfuse3.Operations`` of one chain. Every handler is guarded: only ``FUSEError`` leaves it.

    What is not here, pyfuse3's base class refuses with ENOSYS; changes do not even come, the mount is
    read-only.
    """

    enable_acl = True  # as EROFS: the kernel checks permissions with the ACLs that getxattr gives
    supports_dot_lookup = True
    enable_writeback_cache = False

    def __init__(self, tree: Tree, content: Content) -> None:
        super().__init__()
        self._tree = tree
        self._content = content
        self._absent = _absent()
        self.is_without_xattrs = False  # until somebody has looked at all inodes: ``look_for_xattrs``
        self._listing = Listings(self._list, _KEPT_ENTRIES).get

    @answered
    async def lookup(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        inode = self._tree.child(parent_inode, name)
        return self._absent if inode is None else self._attributes(inode)

    @unanswered
    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        pass  # there is nothing to forget

    @answered
    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        found = self._tree.inode(inode)
        attributes = self._attributes(found)
        attributes.st_ino = found.nid  # of the root too: only its handle is 1
        return attributes

    @answered
    async def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> bytes:
        return self._tree.readlink(inode)

    @answered
    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        return inode

    @answered
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        if start_id == END:  # the kernel always asks once more, to hear that there is nothing
            return
        reply = pyfuse3.readdir_reply
        block, place = place_at(start_id)
        while listing := self._listing(fh, block):
            for name, attributes, next_id in listing[place:]:
                if not reply(token, name, attributes, next_id):
                    return
            if listing[-1][2] == END:
                return
            block, place = block + 1, 0

    @answered
    async def releasedir(self, fh: int) -> None:
        pass

    @answered
    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise pyfuse3.FUSEError(errno.EROFS)
        return pyfuse3.FileInfo(fh=inode, keep_cache=True)

    @answered
    async def read(self, fh: int, off: int, size: int) -> bytes:
        """What lies behind the end of the file is not there: the answer is short."""
        extent = self._tree.content(fh)
        length = min(size, extent.size - off)
        return await self._content.read(extent.offset + off, length) if length > 0 else b""

    @answered
    async def flush(self, fh: int) -> None:
        raise pyfuse3.FUSEError(errno.ENOSYS)  # not to be asked again at every close

    @answered
    async def release(self, fh: int) -> None:
        pass

    async def look_for_xattrs(self) -> None:
        """Find out whether any inode has some, in small steps; 6 us each."""
        try:
            for number, inode in enumerate(self._tree.inodes()):
                if inode.xattr_bytes:
                    return
                if number % _INODES_AT_ONCE == 0:
                    await asyncio.sleep(0)
        except IndexFormatError as exc:
            log.warning("the bootstrap is damaged: %s", exc)
            return
        self.is_without_xattrs = True

    @answered
    async def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        """ENOSYS, where there are none in the whole tree, so that the kernel never asks again: overlayfs looks for
        one of its own at every file (`find -ls` of 15,800 entries, cold, through overlayfs: 0.44 s, else 0.82 s).
        """
        if self.is_without_xattrs:
            raise pyfuse3.FUSEError(errno.ENOSYS)
        value = self._tree.xattrs(inode).get(name)
        if value is None:
            raise pyfuse3.FUSEError(pyfuse3.ENOATTR)
        return value

    @answered
    async def listxattr(self, inode: int, ctx: pyfuse3.RequestContext) -> Sequence[bytes]:
        """EROFS shows trusted names to CAP_SYS_ADMIN only; all that FUSE tells of a caller is who it is."""
        names = self._tree.xattrs(inode)
        return [name for name in names if ctx.uid == 0 or not name.startswith(_TRUSTED)]

    @answered
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        figures = self._tree.figures()
        answer = pyfuse3.StatvfsData()
        answer.f_bsize = answer.f_frsize = figures.block_bytes
        answer.f_blocks = figures.blocks
        answer.f_files = figures.files
        answer.f_namemax = figures.name_max
        return answer

    @answered
    async def access(self, inode: int, mode: int, ctx: pyfuse3.RequestContext) -> bool:
        return True  # the kernel has checked: default_permissions

    def _list(self, directory: int, block: int) -> list[tuple[bytes, pyfuse3.EntryAttributes, int]]:
        """One block: name, attributes, and the position behind it."""
        attributes = self._attributes
        entries = self._tree.entries(directory, block)
        first = position_of(block, 1)
        listing = [(name, attributes(inode), position) for position, (name, inode) in enumerate(entries, first)]
        if listing and self._tree.is_last(directory, block):
            listing[-1] = (*listing[-1][:2], END)
        return listing

    def _attributes(self, inode: Inode) -> pyfuse3.EntryAttributes:
        """As the kernel shows them from EROFS: one time for all three, blocks by the size."""
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = self._tree.number(inode)
        entry.entry_timeout = entry.attr_timeout = _FOR_EVER
        mode = inode.mode
        entry.st_mode = mode
        entry.st_nlink = inode.nlink
        entry.st_uid = inode.uid
        entry.st_gid = inode.gid
        if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
            entry.st_rdev = os.makedev(*inode.rdev)
        entry.st_size = size = inode.size
        entry.st_blksize = layout.BLOCK
        entry.st_blocks = (size + layout.BLOCK - 1) // layout.BLOCK * (layout.BLOCK // 512)
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = inode.mtime_ns
        return entry


def _absent() -> pyfuse3.EntryAttributes:
    """The answer to a lookup that finds nothing, as true for ever as the others."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = 0
    entry.entry_timeout = _FOR_EVER
    return entry
