"""Names of content."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastpull.cache.digest import CHUNK_ID_BYTES, Digest, chain_ids, chunk_id
from fastpull.cache.errors import MalformedDigestError


@given(st.binary(max_size=100))
def test_a_digest_survives_its_text(data: bytes) -> None:
    """Parsing what is printed gives the same digest, of the same hash."""
    digest = Digest.of(memoryview(data))

    assert digest == Digest.parse(str(digest))
    assert hashlib.sha256(data).hexdigest() == digest.hex


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sha256:",
        "a" * 64,
        "sha256:" + "a" * 63,
        "sha256:" + "a" * 65,
        "sha256:" + "A" * 64,
        "sha256:" + "g" * 64,
        "sha512:" + "a" * 64,
        "sha256:" + "a" * 64 + "\n",
        " sha256:" + "a" * 64,
        "sha256:../" + "a" * 61,
        "sha256:" + "\u0660" * 64,
    ],
)
def test_other_text_is_no_digest(text: str) -> None:
    """Digests become file names, so nothing but 64 lowercase hex digits passes."""
    with pytest.raises(MalformedDigestError):
        Digest.parse(text)


@given(st.text(max_size=100))
def test_any_text_is_a_digest_or_refused(text: str) -> None:
    """No other exception, and what is refused is quoted in part only."""
    try:
        assert text == str(Digest.parse(text))
    except MalformedDigestError as exc:
        assert text == exc.text


def test_chain_ids_are_those_of_the_image_spec() -> None:
    """OCI image-spec, config.md, "Layer ChainID": each names the layers up to its own."""
    one, two, three = (Digest.of(name) for name in (b"1", b"2", b"3"))

    chains = chain_ids([one, two, three])

    second = hashlib.sha256(f"{one} {two}".encode()).hexdigest()
    third = hashlib.sha256(f"sha256:{second} {three}".encode()).hexdigest()
    assert [one, Digest(second), Digest(third)] == chains
    assert chain_ids([]) == []


def test_a_chunk_id_is_blake3() -> None:
    """The test vector of the empty input, from the BLAKE3 paper."""
    assert chunk_id(b"").hex() == "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
    assert len(chunk_id(memoryview(b"x"))) == CHUNK_ID_BYTES
