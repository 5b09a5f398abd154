"""Listings that are kept ready."""

from __future__ import annotations

from fastpull.fuse_client.portable.listings import Listings


class Built:
    """Blocks of ``entries`` entries; ``asked`` counts how often each was built."""

    def __init__(self, entries: int) -> None:
        self.entries = entries
        self.asked: list[tuple[int, int]] = []

    def __call__(self, directory: int, block: int) -> list[str]:
        self.asked.append((directory, block))
        return [f"{directory}/{block}/{n}" for n in range(self.entries)]


def test_what_is_kept_is_built_once() -> None:
    """Also what is empty, as behind the last block of each directory."""
    for entries in (3, 0):
        built = Built(entries)
        listings = Listings(built, 100)
        assert [listings.get(d, 0) for d in range(9)] == [listings.get(d, 0) for d in range(9)]
        assert len(built.asked) == 9


def test_the_entries_are_bounded_and_the_last_used_are_kept() -> None:
    """However many directories there are."""
    built = Built(9)
    listings = Listings(built, 50)  # five blocks, each with its own weight
    for directory in range(5):
        listings.get(directory, 0)
    listings.get(0, 0)
    listings.get(7, 0)
    listings.get(0, 0)
    assert len(built.asked) == 6
    listings.get(1, 0)
    assert built.asked[-1] == (1, 0), "the one that was not used the longest had to go"
    assert sum(len(block) + 1 for block in listings._kept.values()) <= 50
    for directory in range(1000):
        listings.get(directory, 1)
    assert sum(len(block) + 1 for block in listings._kept.values()) <= 50


def test_a_block_that_is_larger_than_all_is_given() -> None:
    listings = Listings(Built(100), 50)
    assert len(listings.get(1, 0)) == len(listings.get(2, 0)) == 100
    assert len(listings._kept) == 1
