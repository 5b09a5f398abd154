"""Names, node ids and listings."""

import pytest
from fakes.devices import MemoryDevice

from fastpull.fuse_client.session import directory as module
from fastpull.fuse_client.session.directory import Directory, node_id
from fastpull.fuse_client.session.errors import NodeIdCollisionError

DEVICE = MemoryDevice(bytes(4096))


def test_a_node_id_depends_on_the_name_alone() -> None:
    """The kernel keeps it over restarts, so it must never change: this value is for ever."""
    assert node_id("0f" * 32) == 4515508099874202631
    assert Directory().add("0f" * 32, DEVICE).id == node_id("0f" * 32)


def test_what_was_added_is_found_by_name_and_by_id() -> None:
    """And no longer once removed; removing it again is fine."""
    directory = Directory()
    node = directory.add("one", DEVICE)

    assert directory.find(b"one") is node
    assert directory.get(node.id) is node
    assert directory.find(b"two") is None
    assert directory.find(b"\xff") is None

    directory.remove("one")
    directory.remove("one")

    assert directory.find(b"one") is None
    assert directory.get(node.id) is None


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\0", "x" * 256])
def test_what_is_no_file_name_is_refused(name: str) -> None:
    """Names come from chain ids, but the directory does not trust that."""
    with pytest.raises(ValueError, match="no file name"):
        Directory().add(name, DEVICE)


def test_two_names_never_share_a_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader would get the bytes of another image."""
    monkeypatch.setattr(module, "node_id", lambda name: 99)
    directory = Directory()
    directory.add("one", DEVICE)

    with pytest.raises(NodeIdCollisionError):
        directory.add("two", DEVICE)


def test_a_listing_goes_on_where_it_stopped() -> None:
    """Also when entries came and went in between: each that stayed is seen exactly once."""
    directory = Directory()
    for i in range(10):
        directory.add(f"device{i}", DEVICE)
    first = list(directory.entries(0))[:6]
    assert [entry.name for entry in first[:2]] == [b".", b".."]

    removed = first[3].name.decode()
    directory.remove(removed)
    directory.add("late", DEVICE)
    rest = list(directory.entries(first[-1].cookie))

    seen = [entry.name for entry in first[2:] + rest if entry.name != b"late"]
    assert sorted(seen) == [b"device%d" % i for i in range(10)]
