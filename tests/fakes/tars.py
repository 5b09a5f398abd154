"""Hand-made tars: headers that no writer writes any more, or never should."""

from __future__ import annotations

USTAR = b"ustar\x0000"
GNU = b"ustar  \0"
V7 = bytes(8)
END = bytes(1024)


def header(
    name: bytes,
    flag: bytes = b"0",
    *,
    size: int | bytes = 0,
    mode: int | bytes = 0o644,
    uid: int | bytes = 0,
    gid: int | bytes = 0,
    mtime: int | bytes = 0,
    link: bytes = b"",
    magic: bytes = USTAR,
    major: int | bytes = 0,
    minor: int | bytes = 0,
    prefix: bytes = b"",
    extra: dict[int, bytes] | None = None,
) -> bytes:
    """One header block with a valid checksum. Numbers may be given as the field's bytes; ``extra`` goes to offsets."""
    block = bytearray(512)
    fields: dict[int, tuple[int, int | bytes]] = {
        0: (100, name),
        100: (8, mode),
        108: (8, uid),
        116: (8, gid),
        124: (12, size),
        136: (12, mtime),
        156: (1, flag),
        157: (100, link),
        257: (8, magic),
        329: (8, major),
        337: (8, minor),
        345: (155, prefix),
    }
    for at, (length, value) in fields.items():
        data = b"%0*o\0" % (length - 1, value) if isinstance(value, int) else value
        assert len(data) <= length
        block[at : at + len(data)] = data
    for at, data in (extra or {}).items():
        block[at : at + len(data)] = data
    return signed(block)


def signed(block: bytes | bytearray) -> bytes:
    """The block with its checksum put right."""
    block = bytearray(block)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def member(name: bytes, content: bytes = b"", flag: bytes = b"0", **fields: object) -> bytes:
    return header(name, flag, size=len(content), **fields) + padded(content)  # type: ignore[arg-type]


def records(*pairs: tuple[bytes, bytes]) -> bytes:
    """The body of a PAX header."""
    body = b""
    for key, value in pairs:
        rest = b" %s=%s\n" % (key, value)
        length = len(rest)
        while len(str(length)) + len(rest) != length:
            length = len(str(length)) + len(rest)
        body += b"%d%s" % (length, rest)
    return body


def pax(*pairs: tuple[bytes, bytes], flag: bytes = b"x") -> bytes:
    """A PAX header, to stand before a member (or, with flag ``g``, before all)."""
    return member(b"PaxHeader", records(*pairs), flag)


def long_name(name: bytes, flag: bytes = b"L") -> bytes:
    return member(b"././@LongLink", name + b"\0", flag, magic=GNU)
