"""A follower answers for a blob only when the leader has, and only while the file is there and whole."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fastpull.cache.digest import Digest
from fastpull.proxy.mirror.shelf import find_blob
from fastpull.proxy.workers.blobs import blob_size
from fastpull.proxy.workers.shelf import LearnedShelf
from fastpull.proxy.workers.tally import Tally

DATA = b"blob" * 100
DIGEST = Digest.of(DATA)


@pytest.fixture
def tally() -> Tally:
    return Tally(1)


@pytest.fixture
def shelf(tmp_path: Path, tally: Tally) -> LearnedShelf:
    (tmp_path / DIGEST.hex[:2]).mkdir()
    (tmp_path / DIGEST.hex[:2] / DIGEST.hex).write_bytes(DATA)
    return LearnedShelf(str(tmp_path), "docker.io", ("docker.io", "r.test"), tally)


def opens(shelf: LearnedShelf) -> bool:
    opened = shelf.open(DIGEST)
    if opened is not None:
        assert opened[1] == len(DATA)
        assert os.pread(opened[0], 4, 0) == b"blob"
        os.close(opened[0])
    return opened is not None


def test_only_what_the_leader_has_answered_for(shelf: LearnedShelf, tally: Tally) -> None:
    """It may be a manifest in disguise, or a file that the disk has cut."""
    assert not opens(shelf)
    shelf.learn(DIGEST, len(DATA))
    assert opens(shelf)
    assert tally.take().blobs == (str(DIGEST),)
    shelf.forget(DIGEST)
    assert not opens(shelf)


def test_a_removed_blob_is_gone_at_once(shelf: LearnedShelf, tmp_path: Path) -> None:
    shelf.learn(DIGEST, len(DATA))
    (tmp_path / DIGEST.hex[:2] / DIGEST.hex).unlink()

    assert not opens(shelf)


def test_a_file_of_another_length_is_left_to_the_leader(shelf: LearnedShelf, tmp_path: Path) -> None:
    shelf.learn(DIGEST, len(DATA))
    (tmp_path / DIGEST.hex[:2] / DIGEST.hex).write_bytes(DATA[:-1])

    assert not opens(shelf)


@pytest.mark.parametrize(
    ("target", "label"),
    [
        (f"/v2/app/blobs/{DIGEST}?ns=r.test", "r.test"),
        (f"/v2/library/app/blobs/{DIGEST}", "docker.io"),
        (f"/v2/r.test/app/blobs/{DIGEST}", "r.test"),
        (f"/v2/app/blobs/{DIGEST}?ns=elsewhere.test", None),
        ("/v2/app/manifests/latest?ns=r.test", None),
        ("/v2/app/blobs/sha256:00?ns=r.test", None),
        (f"/other/app/blobs/{DIGEST}?ns=r.test", None),
        (f"/v1/../v2/app/blobs/{DIGEST}", None),
        ("*", None),
    ],
)
def test_blobs_of_named_upstreams_only(shelf: LearnedShelf, target: str, label: str | None) -> None:
    """Whether any other upstream is let is the leader's to say."""
    found = find_blob(shelf, target)

    assert (None if found is None else found.label) == label


@pytest.mark.parametrize(
    ("status", "headers", "size"),
    [
        (200, {"Content-Length": "10"}, 10),
        (206, {"Content-Length": "2", "Content-Range": "bytes 3-4/10"}, 10),
        (206, {"Content-Length": "2"}, None),
        (206, {"Content-Range": "bytes 3-4/*"}, None),
        (404, {"Content-Length": "10"}, None),
        (416, {"Content-Range": "bytes */10"}, None),
        (200, {}, None),
    ],
)
def test_the_size_stands_in_the_answer(status: int, headers: dict[str, str], size: int | None) -> None:
    assert blob_size(status, headers) == size
