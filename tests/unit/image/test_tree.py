"""Layers merge as containerd unpacks them and overlayfs stacks them.

The rows are in ``fakes/merge_rows.py``; ``tests/integration/test_tree_like_containerd.py`` puts them before
containerd itself.
"""

from __future__ import annotations

import pytest
from fakes.layers import (
    CAPABILITY,
    Content,
    directory,
    fifo,
    hardlink,
    layer,
    layers,
    opaque,
    symlink,
    whiteout,
)
from fakes.merge_rows import ROWS

from fastpull.image.errors import LayerFormatError, LimitExceededError
from fastpull.image.layer_index import Entry
from fastpull.image.node import Node
from fastpull.image.tree import Tree, merge

f = Content().file
USER = (b"user.a", b"1")


def names(tree: Tree) -> list[bytes]:
    return [path for path, _ in tree.walk()][1:]


def at(tree: Tree, path: bytes) -> Node:
    return dict(tree.walk())[path]


@pytest.mark.parametrize(("contents", "expected"), ROWS)
def test_the_tree_holds(contents: list[list[Entry]], expected: list[bytes]) -> None:
    """Whiteouts, opaque marks, replacements and symlinked parents leave exactly these paths."""
    assert names(merge(layers(*contents))) == expected


def test_the_last_of_several_entries_counts() -> None:
    """A path given twice has the content and metadata of the second."""
    tree = merge(layers([f(b"a", b"one"), f(b"a", b"three", mode=0o600)]))
    assert (at(tree, b"a").size, at(tree, b"a").mode) == (5, 0o600)


def test_a_directory_given_twice_keeps_its_children_and_gathers_xattrs() -> None:
    """The second entry changes the metadata only."""
    tree = merge(
        layers([directory(b"a", xattrs=(USER,)), f(b"a/x"), directory(b"a", mode=0o700, xattrs=((b"user.b", b""),))])
    )
    assert names(tree) == [b"a", b"a/x"]
    assert (at(tree, b"a").mode, at(tree, b"a").xattrs) == (0o700, (USER, (b"user.b", b"")))


def test_a_merged_directory_has_the_metadata_of_the_topmost_layer() -> None:
    """Mode, owner, time and xattrs come from above, children from both."""
    tree = merge(
        layers(
            [directory(b"a", uid=1, mtime_ns=1, xattrs=(USER,)), f(b"a/x")],
            [directory(b"a", mode=0o711, gid=2, mtime_ns=7)],
        )
    )
    a = at(tree, b"a")
    assert (a.mode, a.uid, a.gid, a.mtime_ns, a.xattrs) == (0o711, 0, 2, 7, ())
    assert names(tree) == [b"a", b"a/x"]


def test_an_implied_directory_is_0755_root_with_the_time_of_its_entry() -> None:
    tree = merge(layers([f(b"p/q/r", uid=3, mode=0o600, mtime_ns=99)]))
    p = at(tree, b"p")
    assert (p.mode, p.uid, p.gid, p.mtime_ns) == (0o755, 0, 0, 99)


def test_an_implied_directory_takes_after_the_lower_one() -> None:
    """A layer that touches a file deep down does not change its parents."""
    lower = directory(b"p", mode=0o2750, uid=5, gid=6, mtime_ns=42, xattrs=(USER,))
    tree = merge(layers([lower, directory(b"p/q", mode=0o700)], [f(b"p/q/r")]))
    p = at(tree, b"p")
    assert (p.mode, p.uid, p.gid, p.mtime_ns, p.xattrs) == (0o2750, 5, 6, 42, (USER,))
    assert at(tree, b"p/q").mode == 0o700


def test_an_implied_directory_does_not_take_after_a_removed_one() -> None:
    tree = merge(layers([directory(b"p", mode=0o700)], [whiteout(b"p")], [f(b"p/r")]))
    assert at(tree, b"p").mode == 0o755


def test_an_implied_directory_inherits_the_group_of_a_set_group_id_parent() -> None:
    """As mkdir(2) does; the bit itself is not inherited."""
    tree = merge(layers([directory(b"p", mode=0o2775, gid=7), f(b"p/q/r")]))
    assert (at(tree, b"p/q").mode, at(tree, b"p/q").gid) == (0o755, 7)


def test_hardlinks_share_an_inode() -> None:
    """All names see one node that counts them."""
    tree = merge(layers([f(b"a", b"data"), hardlink(b"b", b"a"), hardlink(b"c", b"b")]))
    assert at(tree, b"a") is at(tree, b"b") is at(tree, b"c")
    assert at(tree, b"a").nlink == 3


def test_a_hardlink_entry_sets_the_metadata_of_the_shared_inode() -> None:
    """Owner, mode and time are the link's; its chown drops the capability unless the entry has its own."""
    tree = merge(
        layers(
            [
                f(b"a", mode=0o4755, xattrs=(CAPABILITY, USER)),
                hardlink(b"b", b"a", mode=0o600, uid=9, mtime_ns=5),
                f(b"c", xattrs=(CAPABILITY,)),
                hardlink(b"d", b"c", xattrs=(CAPABILITY,)),
            ]
        )
    )
    a = at(tree, b"a")
    assert (a.mode, a.uid, a.mtime_ns, a.xattrs) == (0o600, 9, 5, (USER,))
    assert at(tree, b"c").xattrs == (CAPABILITY,)


def test_a_name_that_is_replaced_or_removed_in_its_layer_counts_no_more() -> None:
    tree = merge(
        layers(
            [
                f(b"a"),
                directory(b"d"),
                hardlink(b"d/b", b"a"),
                hardlink(b"c", b"a"),
                f(b"c", b"other"),
                symlink(b"d", b"gone"),
            ]
        )
    )
    assert at(tree, b"a").nlink == 1


def test_a_name_hidden_by_an_upper_layer_still_counts() -> None:
    """overlayfs shows the link count of the lower file."""
    tree = merge(layers([f(b"a"), hardlink(b"b", b"a"), hardlink(b"c", b"a")], [whiteout(b"b"), f(b"c")]))
    assert (at(tree, b"a").nlink, at(tree, b"c").nlink) == (3, 1)


@pytest.mark.parametrize("other", [symlink(b"s", b"zz"), fifo(b"s")], ids=["symlink", "fifo"])
def test_a_hardlink_may_share_what_is_no_file(other: Entry) -> None:
    tree = merge(layers([other, hardlink(b"t", b"s", uid=4)]))
    assert at(tree, b"s") is at(tree, b"t")
    assert at(tree, b"s").uid == 4
    assert at(tree, b"s").type is other.type


def test_a_hardlink_finds_its_target_through_symlinked_parents() -> None:
    tree = merge(layers([directory(b"d"), f(b"d/a"), symlink(b"l", b"d"), hardlink(b"b", b"l/a")]))
    assert at(tree, b"b") is at(tree, b"d/a")


def test_a_hardlink_to_a_lower_layer_shares_that_inode() -> None:
    """containerd refuses such a layer; its meaning is clear."""
    tree = merge(layers([directory(b"d"), f(b"d/a", b"data")], [hardlink(b"b", b"d/a")]))
    assert at(tree, b"b") is at(tree, b"d/a")
    assert at(tree, b"b").nlink == 2


def test_directory_times_are_set_at_the_end_by_path() -> None:
    """A directory that became a symlink afterwards hands its time to what the symlink leads to."""
    tree = merge(layers([directory(b"a", mtime_ns=77), directory(b"c", mtime_ns=5), symlink(b"a", b"c", mtime_ns=1)]))
    assert at(tree, b"c").mtime_ns == 5
    tree = merge(layers([directory(b"c", mtime_ns=5), directory(b"a", mtime_ns=77), symlink(b"a", b"c", mtime_ns=1)]))
    assert at(tree, b"c").mtime_ns == 77


@pytest.mark.parametrize(
    ("given", "shown"), [(-1, 0), (2**63, 0), (2**63 - 1, 2**63 - 1), (10**18 + 123, 10**18 + 123)]
)
def test_times_that_containerd_does_not_set_become_1970(given: int, shown: int) -> None:
    tree = merge(layers([f(b"a", mtime_ns=given), directory(b"d", mtime_ns=given)]))
    assert (at(tree, b"a").mtime_ns, at(tree, b"d").mtime_ns) == (shown, shown)


def test_xattrs_that_containerd_does_not_set_are_dropped() -> None:
    acl = (b"system.posix_acl_default", b"x")
    every = (CAPABILITY, acl, (b"trusted.overlay.opaque", b"y"), (b"unknown.x", b"1"), USER)
    tree = merge(layers([f(b"f", xattrs=every), directory(b"d", xattrs=every), symlink(b"s", b"f", xattrs=every)]))
    assert at(tree, b"f").xattrs == (CAPABILITY, USER)
    assert at(tree, b"d").xattrs == (CAPABILITY, acl, USER)
    assert at(tree, b"s").xattrs == (CAPABILITY,)


def test_the_root_is_always_0755_root() -> None:
    """Whatever the layers say of it; only its time is theirs."""
    tree = merge(layers([directory(b"", mode=0o700, uid=5, mtime_ns=11, xattrs=(USER,)), f(b"a")], [f(b"b")]))
    root = tree.root
    assert (root.mode, root.uid, root.mtime_ns, root.xattrs) == (0o755, 0, 11, ())


@pytest.mark.parametrize(
    "entries",
    [
        pytest.param([hardlink(b"b", b"a")], id="hardlink-to-nothing"),
        pytest.param([f(b"a"), hardlink(b"a", b"a")], id="hardlink-to-itself"),
        pytest.param([directory(b"a"), hardlink(b"b", b"a")], id="hardlink-to-a-directory"),
        pytest.param([f(b"a"), f(b"a/b")], id="a-file-as-parent"),
        pytest.param([symlink(b"a", b"b"), symlink(b"b", b"a"), f(b"a/x")], id="loop-of-symlinks-as-parent"),
        pytest.param([symlink(b"a", b"")], id="empty-symlink"),
        pytest.param([symlink(b"a", b"x" * 4096)], id="symlink-too-long"),
        pytest.param([f(b"n" * 256)], id="name-too-long"),
        pytest.param([f(b"n" * 256 + b"/a")], id="implied-name-too-long"),
        pytest.param([f(b"a\0b")], id="nul-in-a-name"),
        pytest.param([f(b"a/..")], id="dot-dot"),
        pytest.param([f(b"a/../b")], id="dot-dot-as-parent"),
        pytest.param([f(b"a", uid=2**32)], id="uid-too-large"),
        pytest.param([f(b"a", gid=-1)], id="gid-negative"),
    ],
)
def test_what_no_file_system_holds_is_refused(entries: list[Entry]) -> None:
    """The image then falls back to a normal pull, and containerd says what it thinks of it."""
    with pytest.raises(LayerFormatError):
        merge([layer(*entries)])


def test_a_whiteout_is_no_parent() -> None:
    with pytest.raises(LayerFormatError):
        merge(layers([directory(b"a")], [whiteout(b"a"), f(b"a/b")]))


def test_very_deep_paths_need_no_deep_stack() -> None:
    depth = 2_000
    tree = merge(layers([f(b"/".join([b"d"] * depth))], [whiteout(b"/".join([b"d"] * depth))]))
    assert len(names(tree)) == depth - 1


def test_opaque_marks_can_not_be_made_to_take_for_ever() -> None:
    """A hostile lowest layer alternates implied directories with opaque marks over many names."""
    entries = [directory(b"a"), *(f(b"a/%d" % i) for i in range(1200))]
    for i in range(1200):
        entries += [f(b"i%d/x" % i), opaque(b"a")]
    with pytest.raises(LimitExceededError):
        merge([layer(*entries)])
