"""Chunk frames on the wire."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastpull.cache import frames
from fastpull.cache.digest import ChunkId
from fastpull.cache.errors import FrameError
from fastpull.cache.frames import FrameReader
from fastpull.cache.store import Encoding, StoredChunk

sizes = st.integers(0, frames.MAX_CHUNK_BYTES)
stored_chunks = st.builds(StoredChunk, st.sampled_from(Encoding), sizes, st.binary(max_size=300))
answers = st.lists(st.none() | stored_chunks, max_size=12)
ids = st.lists(st.binary(min_size=32, max_size=32).map(ChunkId), max_size=20)


def body(answer: Sequence[StoredChunk | None]) -> bytes:
    return b"".join(
        frames.MISSING_FRAME if chunk is None else frames.header(chunk) + bytes(chunk.data) for chunk in answer
    )


@given(ids)
def test_ids_survive_the_wire(chunks: list[ChunkId]) -> None:
    """In order, 32 bytes each."""
    assert chunks == frames.unpack_ids(frames.pack_ids(chunks))


@pytest.mark.parametrize("length", [1, 31, 33, 32 * (frames.MAX_IDS + 1)])
def test_a_body_that_is_no_list_of_ids_is_refused(length: int) -> None:
    """Torn ids, and more of them than allowed."""
    with pytest.raises(FrameError):
        frames.unpack_ids(bytes(length))


@given(answers, st.lists(st.integers(0, 4000), max_size=12))
def test_frames_come_out_whatever_pieces_they_arrive_in(answer: list[StoredChunk | None], cuts: list[int]) -> None:
    """Each as soon as it is complete, in order, and nothing remains."""
    data = body(answer)
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    reader = FrameReader()

    found = [frame for start, end in itertools.pairwise(edges) for frame in reader.feed(data[start:end])]

    assert answer == found
    assert reader.pending == 0


@given(answers.filter(bool), st.integers(1, 400))
def test_a_cut_body_shows(answer: list[StoredChunk | None], missing: int) -> None:
    """What is complete comes out, the rest is pending."""
    data = body(answer)[: -min(missing, len(body(answer)))]
    reader = FrameReader()

    found = list(reader.feed(data))

    assert found == answer[: len(found)]
    assert reader.pending == len(data) - len(body(found))


@pytest.mark.fault(
    "hostile input: chunk frames",
    done="random bytes in random pieces as an answer with chunks",
    promised="frames or refused; never more is held than one frame can be",
)
@given(st.lists(st.binary(max_size=60), max_size=8))
def test_hostile_bytes_raise_only_frame_errors(pieces: list[bytes]) -> None:
    """And no piece makes the reader buffer more than one frame can be."""
    reader = FrameReader()
    with contextlib.suppress(FrameError):
        for piece in pieces:
            for frame in reader.feed(piece):
                assert frame is None or len(frame.data) <= frames.MAX_CHUNK_BYTES


@pytest.mark.parametrize(
    "header",
    [
        pytest.param(frames.HEADER.pack(2, 0, 0), id="unknown-encoding"),
        pytest.param(frames.HEADER.pack(0, frames.MAX_CHUNK_BYTES + 1, 0), id="too-long"),
        pytest.param(frames.HEADER.pack(1, 10, frames.MAX_CHUNK_BYTES + 1), id="too-large-inflated"),
        pytest.param(frames.HEADER.pack(0, 2**32 - 1, 2**32 - 1), id="as-long-as-can-be"),
    ],
)
def test_a_frame_that_no_proxy_sends_is_refused_before_its_data_comes(header: bytes) -> None:
    """So that a broken peer can not fill the memory."""
    with pytest.raises(FrameError):
        list(FrameReader().feed(header))


def test_a_frame_stands_as_documented() -> None:
    """The table of the module, byte by byte: the other side may be of another version."""
    assert frames.header(StoredChunk(Encoding.ZSTD, 0x0102, b"abc")).hex() == "010000000300000002010000"
    assert frames.MISSING_FRAME.hex() == "ff0000000000000000000000"
