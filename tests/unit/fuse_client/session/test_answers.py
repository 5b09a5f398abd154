"""Answers have the sizes and the fields that the kernel expects."""

import stat
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastpull.fuse_client.session import answers
from fastpull.fuse_client.session.errors import FuseVersionError
from fastpull.fuse_client.session.protocol import Init, InitFlag

FILE = answers.Attributes(ino=77, mode=stat.S_IFREG | 0o400, size=5000)


@pytest.mark.parametrize(
    ("body", "size"),
    [
        pytest.param(answers.entry_body(FILE, attr_valid_seconds=1), 128, id="fuse_entry_out"),
        pytest.param(answers.attr_body(FILE, attr_valid_seconds=1), 104, id="fuse_attr_out"),
        pytest.param(answers.open_body(answers.OpenFlag.DIRECT_IO), 16, id="fuse_open_out"),
        pytest.param(answers.statfs_body(total_bytes=1, files=1), 80, id="fuse_statfs_out"),
    ],
)
def test_bodies_have_the_sizes_of_the_kernel(body: bytes, size: int) -> None:
    """The kernel refuses any other (``include/uapi/linux/fuse.h``)."""
    assert len(body) == size


def test_an_error_is_negative_and_alone() -> None:
    """``fuse_out_header``: u32 length, i32 error, u64 unique."""
    assert struct.unpack("<IiQ", answers.error_answer(1 << 63 | 5, 2)) == (16, -2, 1 << 63 | 5)


def test_resend_is_a_notification() -> None:
    """unique 0, and FUSE_NOTIFY_RESEND (7) in the place of the error."""
    assert struct.unpack("<IiQ", answers.resend_notice()) == (16, 7, 0)


def test_init_asks_for_what_the_kernel_has_and_no_more() -> None:
    """An offered flag that we do not know stays off; a wanted one that is not offered too."""
    offered = InitFlag.ASYNC_READ | InitFlag.INIT_EXT | InitFlag.HAS_RESEND | 1 << 17 | 1 << 50

    agreement, answer = answers.agree(Init(2, 1, 7, 45, 131072, offered))

    assert len(answer) == 16 + 64
    major, minor, readahead, flags, background = struct.unpack_from("<IIIIH", answer, 16)
    (flags2,) = struct.unpack_from("<I", answer, 16 + 32)
    assert (major, minor, readahead) == (7, 45, 1 << 20)
    assert background > 12
    assert flags | flags2 << 32 == InitFlag.ASYNC_READ | InitFlag.INIT_EXT | InitFlag.HAS_RESEND
    assert agreement.can_resend


def test_an_older_kernel_sets_the_version() -> None:
    """Both sides speak the older of the two."""
    agreement, answer = answers.agree(Init(2, 1, 7, 31, 131072, InitFlag.ASYNC_READ))

    assert struct.unpack_from("<II", answer, 16) == (7, 31)
    assert not agreement.can_resend


@pytest.mark.parametrize(("major", "minor"), [(7, 27), (8, 0), (6, 0)])
def test_another_protocol_is_refused(major: int, minor: int) -> None:
    """Too old, or not FUSE 7 at all."""
    with pytest.raises(FuseVersionError):
        answers.agree(Init(2, 1, major, minor, 0, 0))


names = st.binary(min_size=1, max_size=255)


@given(st.lists(names, max_size=20), st.integers(0, 4096))
def test_a_listing_holds_whole_entries_only(entries: list[bytes], limit: int) -> None:
    """As many as fit, each padded to 8 bytes; the kernel stops at a cut one."""
    body = answers.readdir_body(
        [answers.DirEntry(i + 20, name, stat.S_IFREG, i + 1) for i, name in enumerate(entries)], limit
    )

    assert len(body) <= limit
    position, found = 0, []
    while position < len(body):
        _ino, _cookie, length, kind = struct.unpack_from("<QQII", body, position)
        found.append(body[position + 24 : position + 24 + length])
        assert kind == 8  # DT_REG
        position += -(-(24 + length) // 8) * 8
    assert position == len(body)
    assert found == entries[: len(found)]
