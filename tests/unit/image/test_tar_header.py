"""Header blocks are read as Go's archive/tar reads them."""

import pytest
from fakes.tars import GNU, USTAR, V7, header, signed

from fastpull.image.errors import LayerFormatError
from fastpull.image.tar_header import TarHeader, parse_header, parse_number


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (b"0000644\0", 0o644),
        (b"   644 \0", 0o644),
        (b"\x00\x00644\x00 ", 0o644),
        (b"644\x00junk", 0o644),
        (b"00000644", 0o644),
        (bytes(8), 0),
        (b"        ", 0),
        (b"\x80\0\0\0\0\0\x10\0", 0x1000),
        (b"\xff" * 8, -1),
        (b"\xff" * 11 + b"\xfb", -5),
        (b"\x80\0\0\0" + b"\x7f" + b"\xff" * 7, 2**63 - 1),
    ],
)
def test_numbers_are_octal_or_base_256(field: bytes, value: int) -> None:
    """Blanks and NULs around the digits do not count; the first bit announces two's complement."""
    assert parse_number(field) == value


@pytest.mark.parametrize(
    "field",
    [
        b"0000648\0",
        b"-000644\0",
        b"+000644\0",
        b"0o00644\0",
        b"06_4400\0",
        b"644 644\0",
        b"\x80\0\0\0" + b"\xff" * 8,
    ],
)
def test_what_is_no_number_is_refused(field: bytes) -> None:
    """Python's int() is more generous than any tar reader, and Go's numbers have 64 bits."""
    with pytest.raises(LayerFormatError):
        parse_number(field)


def test_every_field_is_read() -> None:
    block = header(b"dev/sda", b"4", mode=0o660, uid=7, gid=8, mtime=1700000000, major=8, minor=1, prefix=b"pre/fix")
    assert parse_header(block) == TarHeader(
        b"pre/fix/dev/sda", b"4", 0o660, 7, 8, 0, 1700000000_000000000, major=8, minor=1
    )


def test_size_with_digits_that_are_not_octal_is_refused() -> None:
    with pytest.raises(LayerFormatError, match="octal"):
        parse_header(header(b"f", size=b"00000000138\0"))


def test_a_checksum_of_signed_bytes_is_valid() -> None:
    """Sun's tar summed signed chars; it differs as soon as a name holds bytes above 127."""
    block = bytearray(header("grün".encode()))
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(byte - 256 if byte > 127 else byte for byte in block)
    assert parse_header(bytes(block)).name == "grün".encode()


@pytest.mark.parametrize("at", [0, 99, 124, 257, 511])
def test_a_flipped_byte_is_noticed(at: int) -> None:
    block = bytearray(header(b"file"))
    block[at] ^= 1
    with pytest.raises(LayerFormatError, match="checksum"):
        parse_header(bytes(block))


def test_v7_headers_have_neither_prefix_nor_devices() -> None:
    block = header(b"file", magic=V7, major=3, prefix=b"not a prefix")
    assert parse_header(block).name == b"file"
    assert parse_header(block).major == 0


def test_star_prefixes_end_before_the_times() -> None:
    block = header(b"file", prefix=b"p" * 131 + b"00000000001 00000000002 ", extra={508: b"tar\0"})
    assert parse_header(block).name == b"p" * 131 + b"/file"
    with pytest.raises(LayerFormatError):
        parse_header(header(b"file", prefix=b"p" * 131 + b"no time", extra={508: b"tar\0"}))


@pytest.mark.parametrize(
    ("field", "name"),
    [
        (b"14524060000\x0014524060000\0", b"file"),  # atime and ctime, as GNU tar writes them
        (b"usr/lib/python3", b"usr/lib/python3/file"),  # what Go before 1.8 wrote there
        ("grün".encode(), b"file"),
        (b"", b"file"),
    ],
)
def test_gnu_headers_have_times_where_ustar_has_the_prefix(field: bytes, name: bytes) -> None:
    assert parse_header(header(b"file", magic=GNU, prefix=field)).name == name


def test_names_end_at_the_first_nul() -> None:
    block = signed(bytearray(header(b"name\0rest", link=b"to\0rest", magic=USTAR)))
    assert (parse_header(block).name, parse_header(block).link) == (b"name", b"to")
