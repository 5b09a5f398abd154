"""The chunk store's bytes on disk: what is packed is unpacked, and nothing else is taken for it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastpull.cache import records
from fastpull.cache.digest import ChunkId
from fastpull.cache.errors import ChunkCorruptError, IndexDamagedError, StoreVersionError
from fastpull.cache.frames import MAX_CHUNK_BYTES
from fastpull.cache.records import Accounts, Entry, Segment
from fastpull.cache.store import Encoding

NAME = ChunkId(bytes(range(32)))
u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
lengths = st.integers(0, MAX_CHUNK_BYTES)
entries = st.builds(Entry, st.sampled_from(Encoding), lengths, u32, u32, u64, u64)


@given(entries)
def test_an_entry_survives_the_disk(entry: Entry) -> None:
    """Field by field, in 32 bytes."""
    data = records.pack_entry(entry)

    assert len(data) == records.ENTRY.size == 32
    assert entry == records.unpack_entry(NAME, data)


def test_an_entry_stands_as_documented() -> None:
    """The table of the module, byte by byte: files outlive programs."""
    entry = Entry(Encoding.ZSTD, 0x00112233, 0x55667788, 0x99AABBCC, 0x0102030405060708, 0x1112131415161718)

    expected = "010100003322110088776655ccbbaa9908070605040302011817161514131211"
    assert expected == records.pack_entry(entry).hex()
    assert records.PLACE_KEY.pack(1, 2).hex() == "000000010000000000000002"
    assert records.TICK.pack(3).hex() == "0000000000000003"


@given(st.binary(max_size=80))
def test_bytes_that_are_no_entry_are_said_to_be_damaged(data: bytes) -> None:
    """Whatever stands there: an entry, one of a newer version, or ``ChunkCorruptError``."""
    try:
        entry = records.unpack_entry(NAME, data)
    except ChunkCorruptError:
        return
    assert data[0] >= records.ENTRY_VERSION
    assert (entry is None) == (data[0] > records.ENTRY_VERSION)


def test_an_entry_of_a_newer_version_counts_as_missing() -> None:
    """Also when it is longer than ours."""
    assert records.unpack_entry(NAME, b"\x02" + bytes(99)) is None


@given(st.builds(Segment, u64, u64, u64, st.booleans()), st.builds(Accounts, u64, u64, u64, u64, u64))
def test_segments_and_accounts_survive_the_disk(segment: Segment, accounts: Accounts) -> None:
    """And no accounts at all are those of an empty store."""
    assert segment == records.unpack_segment(records.pack_segment(segment))
    assert accounts == records.unpack_accounts(records.pack_accounts(accounts))
    assert Accounts() == records.unpack_accounts(None)


@pytest.mark.parametrize("data", [b"", b"\0", bytes(24), bytes(64)])
def test_an_index_of_another_shape_is_said_to_be_damaged(data: bytes) -> None:
    """It is not read as something else."""
    for unpack in (records.unpack_segment, records.unpack_accounts):
        with pytest.raises(IndexDamagedError):
            unpack(data)


@pytest.mark.parametrize("found", [b"\x02\0\0\0", b"\xff\xff\xff\xff", b"", b"junk and more"])
def test_another_format_is_refused(found: bytes) -> None:
    """With the place and the remedy in the message."""
    records.check_format(records.pack_format(), "/there")
    with pytest.raises(StoreVersionError, match=r"/there.*remove the directory"):
        records.check_format(found, "/there")
