"""Requests of the kernel: right ones are understood, wrong ones raise one declared error."""

import contextlib
import struct

import pytest
from fakes.kernel import read_body, request
from hypothesis import given
from hypothesis import strategies as st

from fastpull.fuse_client.session import protocol
from fastpull.fuse_client.session.errors import ProtocolError
from fastpull.fuse_client.session.protocol import Opcode, parse


def test_the_header_is_forty_bytes() -> None:
    """``struct fuse_in_header`` of ``include/uapi/linux/fuse.h``."""
    assert protocol.IN_HEADER_BYTES == 40


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(request(Opcode.LOOKUP, b"blob\0"), protocol.Lookup(2, 1, b"blob"), id="lookup"),
        pytest.param(request(Opcode.GETATTR, bytes(16), node=7), protocol.GetAttr(2, 7), id="getattr"),
        pytest.param(request(Opcode.OPEN, struct.pack("<II", 0x8000, 0)), protocol.Open(2, 1, 0x8000), id="open"),
        pytest.param(request(Opcode.READ, read_body(4096, 8192)), protocol.Read(2, 1, 4096, 8192), id="read"),
        pytest.param(request(Opcode.READDIR, read_body(5, 4096)), protocol.ReadDir(2, 1, 5, 4096), id="readdir"),
        pytest.param(request(Opcode.STATFS), protocol.StatFs(2, 1), id="statfs"),
        pytest.param(request(Opcode.RELEASE, bytes(24)), protocol.Notice(2, 1), id="release"),
        pytest.param(request(Opcode.INTERRUPT, struct.pack("<Q", 9)), protocol.Interrupt(2, 1, 9), id="interrupt"),
        pytest.param(request(Opcode.FORGET, bytes(8)), protocol.Forget(2, 1), id="forget"),
        pytest.param(request(Opcode.BATCH_FORGET, bytes(8)), protocol.Forget(2, 1), id="batch-forget"),
        pytest.param(request(Opcode.UNLINK, b"blob\0"), protocol.Change(2, 1, Opcode.UNLINK), id="change"),
        pytest.param(request(4711), protocol.Unsupported(2, 1, 4711), id="unknown-opcode"),
        pytest.param(
            request(Opcode.LOOKUP, b"blob\0" + bytes(8), extensions=1), protocol.Lookup(2, 1, b"blob"), id="extensions"
        ),
        pytest.param(
            request(Opcode.INIT, struct.pack("<IIIII", 7, 45, 131072, 1 << 30 | 1, 1 << 7)),
            protocol.Init(2, 1, 7, 45, 131072, 1 << 39 | 1 << 30 | 1),
            id="init-with-more-flags",
        ),
        pytest.param(
            request(Opcode.INIT, struct.pack("<IIII", 7, 31, 131072, 1)),
            protocol.Init(2, 1, 7, 31, 131072, 1),
            id="init-of-an-old-kernel",
        ),
    ],
)
def test_a_request_becomes_a_value(data: bytes, expected: protocol.Request) -> None:
    """What the kernel asks, with nothing of the wire left in it."""
    assert parse(memoryview(data)) == expected


def test_a_resent_request_keeps_its_unique() -> None:
    """The answer has to carry bit 63 back exactly as it came."""
    data = request(Opcode.STATFS, unique=1 << 63 | 42)

    assert parse(memoryview(data)).unique == 1 << 63 | 42


@pytest.mark.parametrize(
    ("data", "unique"),
    [
        pytest.param(b"", 0, id="nothing"),
        pytest.param(request(Opcode.STATFS)[:39], 0, id="half-a-header"),
        pytest.param(request(Opcode.STATFS) + b"x", 2, id="longer-than-it-says"),
        pytest.param(request(Opcode.READ, bytes(39)), 2, id="arguments-cut"),
        pytest.param(request(Opcode.LOOKUP, b"no end"), 2, id="name-without-zero"),
        pytest.param(request(Opcode.LOOKUP, b"\0"), 2, id="empty-name"),
        pytest.param(request(Opcode.LOOKUP, b"a\0b\0"), 2, id="two-names"),
        pytest.param(request(Opcode.LOOKUP, b"a" * 256 + b"\0"), 2, id="name-too-long"),
        pytest.param(request(Opcode.STATFS, extensions=9000), 2, id="more-extensions-than-bytes"),
    ],
)
def test_what_is_no_request_says_whom_to_answer(data: bytes, unique: int) -> None:
    """The error carries the id, so that the caller does not wait for ever."""
    with pytest.raises(ProtocolError) as caught:
        parse(memoryview(data))

    assert caught.value.unique == unique


@pytest.mark.fault(
    "hostile input: FUSE requests",
    done="random bytes",
    promised="a request, or the declared error",
)
@given(st.binary(max_size=200))
def test_any_bytes_give_a_request_or_the_declared_error(data: bytes) -> None:
    """No other exception leaves the parser."""
    with contextlib.suppress(ProtocolError):
        parse(memoryview(data))


@given(
    opcode=st.one_of(st.sampled_from(list(Opcode)), st.integers(0, 2**32 - 1)),
    body=st.binary(max_size=400),
    unique=st.integers(0, 2**64 - 1),
    node=st.integers(0, 2**64 - 1),
    extensions=st.integers(0, 60),
)
def test_any_arguments_give_a_request_or_the_declared_error(
    opcode: int, body: bytes, unique: int, node: int, extensions: int
) -> None:
    """Also behind a right header; and what is answered goes to who asked."""
    try:
        parsed = parse(memoryview(request(opcode, body, unique=unique, node=node, extensions=extensions)))
    except ProtocolError as exc:
        assert exc.unique == unique
    else:
        assert (parsed.unique, parsed.node) == (unique, node)
