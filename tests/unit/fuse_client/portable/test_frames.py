"""What child and daemon say to each other, byte for byte."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastpull.cache.digest import Digest
from fastpull.fuse_client.portable import frames
from fastpull.fuse_client.portable.errors import FrameError
from fastpull.fuse_client.portable.frames import Head, Kind

CHAIN = Digest("ab" * 32)


def test_the_bytes_are_those_of_the_description() -> None:
    """A change of them needs a new version: children outlive the daemon that started them."""
    assert frames.pack_hello(CHAIN) == b"FPPD\x01\0\0\0" + b"\xab" * 32
    assert frames.pack_answer(4096) == b"FPPD\x01\0\0\0" + b"\0\x10\0\0\0\0\0\0"
    read = frames.pack_head(Kind.READ, 0x10000, 7, 0x0102030405)
    assert read.hex() == "01000000" + "00000100" + "0700000000000000" + "0504030201000000"
    assert frames.pack_used([1, 2], 9).hex() == "02000000020000000900000000000000" + "00" * 8 + "0100000002000000"


def test_hello_and_answer_come_through() -> None:
    assert frames.unpack_hello(frames.pack_hello(CHAIN)) == CHAIN
    assert frames.unpack_answer(frames.pack_answer(0)) == 0
    assert frames.unpack_answer(frames.pack_answer(1 << 40)) == 1 << 40


@pytest.mark.parametrize("first", [b"FPPD\x02\0\0\0", b"FPPD\0\0\0\0", b"XPPD\x01\0\0\0", b"GET / HT"])
def test_another_version_is_refused(first: bytes) -> None:
    with pytest.raises(FrameError):
        frames.unpack_hello(first + bytes(32))
    with pytest.raises(FrameError):
        frames.unpack_answer(first + bytes(8))


@given(st.binary(min_size=frames.HEAD_BYTES, max_size=frames.HEAD_BYTES), st.booleans())
def test_any_head_is_understood_or_refused(data: bytes, from_child: bool) -> None:
    """What is understood is within the limits."""
    try:
        head = frames.unpack_head(data, from_child=from_child)
    except FrameError:
        return
    assert head.body_bytes <= frames.MAX_READ
    assert (head.kind in (Kind.READ, Kind.USED)) == from_child


@pytest.mark.parametrize(
    ("head", "from_child"),
    [
        pytest.param(frames.pack_head(Kind.READ, frames.MAX_READ + 1), True, id="too-long-read"),
        pytest.param(frames.pack_head(Kind.READ, 0), True, id="empty-read"),
        pytest.param(frames.pack_head(Kind.USED, frames.MAX_USED + 1), True, id="too-many-chunks"),
        pytest.param(frames.pack_head(Kind.DATA, 1), True, id="an-answer-from-the-child"),
        pytest.param(frames.pack_head(Kind.READ, 1), False, id="a-question-from-the-daemon"),
        pytest.param(frames.pack_head(Kind.DATA, frames.MAX_READ + 1), False, id="too-much-data"),
        pytest.param(frames.pack_head(Kind.FAILED, 4096), False, id="no-errno"),
        pytest.param(b"\x09" + bytes(23), True, id="unknown-kind"),
    ],
)
def test_what_is_out_of_bounds_is_refused(head: bytes, from_child: bool) -> None:
    with pytest.raises(FrameError):
        frames.unpack_head(head, from_child=from_child)


def test_used_chunks_come_through_in_their_order() -> None:
    packed = frames.pack_used([5, 3, 4_000_000_000], 17)
    head = frames.unpack_head(packed[: frames.HEAD_BYTES], from_child=True)
    assert head == Head(Kind.USED, 3, 17, 0)
    body = packed[frames.HEAD_BYTES :]
    assert len(body) == head.body_bytes
    assert list(frames.unpack_used(body)) == [5, 3, 4_000_000_000]
