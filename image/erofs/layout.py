"""EROFS on disk, as far as a bootstrap needs it. Everything is little-endian.

After the kernel's ``fs/erofs/erofs_fs.h``. Only what Linux 5.16 already reads is used: uncompressed inodes,
one extra device, no long xattr prefixes, no xattr filter, no 48-bit addresses.

A file's content is one chunk, however large, of the extra device (``CHUNK_BASED``, one index). A flat inode whose
blocks lie where the device is mapped says the same in 32 bytes less, but Linux 6.18 then reads page by page: it
compares the address in the image with the one on the device before it merges two pages (``fs/erofs/fileio.c``,
``erofs_fileio_scan_folio``), so a file of 9 KB took three reads of the device instead of one.

A bootstrap::

    0      1024   zero (boot sector)
    1024   128    superblock, slot 8 of 128 bytes
    1152   128    device table, slot 9: the device that holds all file content
    1280   …      inodes, each followed by its xattrs and inline data; the root within the first two blocks
    …      …      blocks of large directories and of long symlink targets

Addresses count blocks of 4096 bytes, those of file content from the device's begin. Node number n is at byte 32 n.
"""

from __future__ import annotations

import struct
from typing import Final

BLOCK_BITS: Final = 12
BLOCK: Final = 1 << BLOCK_BITS
MAX_BLOCKS: Final = 2**32 - 1  # block addresses have 32 bits, all ones means "none"
SLOT: Final = 32  # bytes between two node numbers
MAX_NAME: Final = 255

# Superblock:
#
#   offset  size  type   field
#   0       4     u32    magic
#   4       4     u32    CRC-32C (seed ~0, not inverted) of this block from 1024 on, this field as zero
#   8       4     u32    compatible features
#   12      1     u8     block size, as power of two
#   13      1     u8     extra slots of 16 bytes behind the superblock: 0
#   14      2     u16    node number of the root
#   16      8     u64    number of inodes
#   24      8     u64    time of compact inodes, seconds: 0, there are none
#   32      4     u32    …, nanoseconds: 0
#   36      4     u32    blocks of the bootstrap
#   40      4     u32    first block of the inodes: 0
#   44      4     u32    first block of shared xattrs: 0, there are none
#   48      16    bytes  UUID
#   64      16    str    volume name
#   80      4     u32    incompatible features
#   84      2     u16    compression: 0
#   86      2     u16    number of extra devices: 1
#   88      2     u16    slot (of 128 bytes) of the device table
#   90      38           later additions: 0
SUPERBLOCK: Final = struct.Struct("<IIIBBHQQIIII16s16sIHHH38x")
SUPERBLOCK_OFFSET: Final = 1024
MAGIC: Final = 0xE0F5E1E2
COMPAT_CHECKSUM: Final = 0x1
COMPAT_MTIME: Final = 0x2
INCOMPAT_CHUNKED_FILE: Final = 0x4
INCOMPAT_DEVICE_TABLE: Final = 0x8
VOLUME: Final = b"fastpull"

# Device table entry:
#
#   offset  size  type   field
#   0       64    str    name of the device; mount's ``device=`` option replaces it
#   64      4     u32    blocks
#   68      4     u32    block at which it is mapped: behind the bootstrap; nothing is addressed that way
#   72      56           zero
DEVICE: Final = struct.Struct("<64sII56x")
DEVICE_TABLE_SLOT: Final = 9
INODES_OFFSET: Final = 128 * (DEVICE_TABLE_SLOT + 1)

# Extended inode. The compact one of 32 bytes has no time of its own and is not used.
#
#   offset  size  type   field
#   0       2     u16    format: bit 0 extended, bits 1-3 data layout
#   2       2     u16    n: 12 + 4 (n - 1) bytes of xattrs follow, 0 = none
#   4       2     u16    mode with file type
#   6       2            zero
#   8       8     u64    size
#   16      4     u32    address of the data, device number (``makedev``) of a device node, or chunk format: bits 0-4
#                        size of a chunk in blocks as power of two, bit 5 indexes of 8 bytes
#   20      4     u32    serial number
#   24      4     u32    uid
#   28      4     u32    gid
#   32      8     s64    mtime, seconds
#   40      4     u32    mtime, nanoseconds
#   44      4     u32    number of links
#   48      16           zero
INODE: Final = struct.Struct("<HHHxxQIIIIqII16x")
EXTENDED: Final = 0x1
FLAT_PLAIN: Final = 0 << 1  # all data at the address
FLAT_INLINE: Final = 2 << 1  # whole blocks at the address, the rest behind the xattrs, within one block
CHUNK_BASED: Final = 4 << 1  # an index behind the xattrs, aligned to its size
CHUNK_INDEXES: Final = 0x20
NO_ADDRESS: Final = 0xFFFFFFFF

# Index of a chunk:
#
#   offset  size  type   field
#   0       2            zero
#   2       2     u16    number of the device in the device table, from 1 on
#   4       4     u32    first block on that device
CHUNK_INDEX: Final = struct.Struct("<xxHI")
CONTENT_DEVICE: Final = 1

# Directory data: blocks, each with its entries, then their names; the whole sorted by name. A name ends where
# the next begins, the last one at a NUL or at the end of the block or directory.
#
#   offset  size  type   field
#   0       8     u64    node number
#   8       2     u16    offset of the name in the block
#   10      1     u8     file type
#   11      1            zero
DIRENT: Final = struct.Struct("<QHBx")
TYPE_FILE, TYPE_DIRECTORY, TYPE_CHARACTER, TYPE_BLOCK, TYPE_FIFO, TYPE_SOCKET, TYPE_SYMLINK = range(1, 8)

# Xattrs behind an inode: a header, then entries padded to 4 bytes, each with its name and value.
#
#   header  0   4   u32    name filter, unused without its feature: 0
#           4   1   u8     number of shared xattrs: 0
#           5   7          zero
#   entry   0   1   u8     length of the name without its prefix
#           1   1   u8     prefix, see below
#           2   2   u16    length of the value
#           4   …   bytes  name, then value
XATTR_HEADER: Final = struct.Struct("<IB7x")
XATTR_ENTRY: Final = struct.Struct("<BBH")
MAX_XATTR_BYTES: Final = XATTR_HEADER.size + 4 * (2**16 - 2)
MAX_XATTR_VALUE: Final = 2**16 - 1
# Name prefix → number. The two access control lists are whole names.
XATTR_PREFIXES: Final = {
    b"user.": 1,
    b"system.posix_acl_access": 2,
    b"system.posix_acl_default": 3,
    b"trusted.": 4,
    b"security.": 6,
}


def _crc_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return tuple(table)


_CRC = _crc_table()


def checksum(block: bytes | bytearray | memoryview) -> int:
    """The superblock's checksum, from the first block of an image."""
    crc = 0xFFFFFFFF
    area = bytearray(block[SUPERBLOCK_OFFSET:BLOCK])
    area[4:8] = bytes(4)
    for byte in area:
        crc = _CRC[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc


def chunk_format(size: int) -> int:
    """The chunk format of a file of ``size`` bytes in one chunk: the smallest chunk that holds it."""
    return CHUNK_INDEXES | max(0, (size - 1).bit_length() - BLOCK_BITS)


def index_offset(end: int) -> int:
    """Where the index stands behind an inode and its xattrs, which end at ``end``."""
    return end + -end % CHUNK_INDEX.size


def encode_rdev(major: int, minor: int) -> int:
    """Linux' 32-bit device number (``new_encode_dev``): 12 bits major, 20 bits minor."""
    return minor & 0xFF | major << 8 | (minor & ~0xFF) << 12


def decode_rdev(rdev: int) -> tuple[int, int]:
    """Major and minor of a device number."""
    return rdev >> 8 & 0xFFF, rdev & 0xFF | rdev >> 12 & 0xFFF00
