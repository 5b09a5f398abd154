"""Layers and the paths that they merge to, as rows for ``pytest.mark.parametrize``.

``REFUSED_BY_CONTAINERD`` names the rows whose layers containerd does not unpack, although their meaning is clear.
"""

from __future__ import annotations

import pytest
from fakes.layers import CAPABILITY, Content, device, directory, fifo, hardlink, opaque, symlink, whiteout

from fastpull.image.layer_index import EntryType

CONTENT = Content()
REFUSED_BY_CONTAINERD = {
    "whiteout-after-its-own-layer's-entry",
    "whiteout-twice",
    "implied-directory-below-a-removed-one",
    "hardlink-to-a-lower-layer",
}

f = CONTENT.file
_USER = (b"user.a", b"1")
_T = 10**18

ROWS = [
    pytest.param([], [], id="no-layer"),
    pytest.param([[]], [], id="empty-layer"),
    pytest.param([[f(b"a")], [], [f(b"b")]], [b"a", b"b"], id="empty-layer-between"),
    pytest.param(
        [[directory(b"a"), f(b"a/x"), f(b"a/y")], [whiteout(b"a/x")]], [b"a", b"a/y"], id="whiteout-of-a-file"
    ),
    pytest.param([[directory(b"a"), f(b"a/x"), f(b"y")], [whiteout(b"a")]], [b"y"], id="whiteout-of-a-directory"),
    pytest.param([[f(b"a")], [whiteout(b"b")]], [b"a"], id="whiteout-of-nothing"),
    pytest.param(
        [[directory(b"a"), f(b"a/x")], [directory(b"a"), opaque(b"a"), f(b"a/z")]],
        [b"a", b"a/z"],
        id="opaque-before-its-entries",
    ),
    pytest.param(
        [[directory(b"a"), f(b"a/x")], [directory(b"a"), f(b"a/z"), opaque(b"a")]],
        [b"a", b"a/z"],
        id="opaque-after-its-entries",
    ),
    pytest.param(
        [[directory(b"a"), f(b"a/x")], [opaque(b"a")], [f(b"a/y")]],
        [b"a", b"a/y"],
        id="opaque-in-a-middle-layer",
    ),
    pytest.param([[f(b"x")], [opaque(b""), f(b"z")]], [b"x", b"z"], id="opaque-root-hides-nothing"),
    pytest.param(
        [[directory(b"c"), f(b"c/x")], [directory(b"c"), symlink(b"a", b"c"), opaque(b"a")]],
        [b"a", b"c"],
        id="opaque-through-a-symlink",
    ),
    pytest.param([[f(b"a"), whiteout(b"a"), f(b"b")]], [b"b"], id="lowest-layer-whiteout-removes"),
    pytest.param(
        [[directory(b"a"), f(b"a/x"), opaque(b"a"), f(b"a/z")]],
        [b"a", b"a/x", b"a/z"],
        id="lowest-layer-opaque-keeps-entries",
    ),
    pytest.param(
        [[directory(b"a"), f(b"a/i/x"), opaque(b"a"), f(b"a/z")]],
        [b"a", b"a/z"],
        id="lowest-layer-opaque-removes-implied-directories",
    ),
    pytest.param(
        [[directory(b"a"), f(b"a/x")], [whiteout(b"a"), f(b"a")]], [b"a"], id="whiteout-then-file-of-that-name"
    ),
    pytest.param(
        [[directory(b"a"), f(b"a/x")], [whiteout(b"a"), directory(b"a"), f(b"a/z")]],
        [b"a", b"a/x", b"a/z"],
        id="whiteout-then-directory-of-that-name-merges",
    ),
    pytest.param([[f(b"a")], [f(b"a"), whiteout(b"a")]], [b"a"], id="whiteout-after-its-own-layer's-entry"),
    pytest.param([[f(b"a")], [whiteout(b"a"), whiteout(b"a")]], [], id="whiteout-twice"),
    pytest.param([[f(b"q")], [whiteout(b"n/o/x")]], [b"n", b"n/o", b"q"], id="whiteout-makes-parents"),
    pytest.param([[f(b"x"), f(b"y")], [device(b"x", EntryType.CHARACTER, 0, 0)]], [b"y"], id="character-device-0-0"),
    pytest.param([[device(b"x", EntryType.CHARACTER, 0, 0)]], [], id="character-device-0-0-alone"),
    pytest.param([[f(b"a")], [directory(b"a"), f(b"a/x")], [f(b"a")]], [b"a"], id="file-to-directory-and-back"),
    pytest.param(
        [[directory(b"a"), f(b"a/x")], [f(b"a")], [directory(b"a"), f(b"a/y")]],
        [b"a", b"a/y"],
        id="directory-to-file-and-back",
    ),
    pytest.param([[f(b"a")], [f(b"a/b")]], [b"a", b"a/b"], id="implied-directory-over-a-lower-file"),
    pytest.param([[f(b"p/q/r")]], [b"p", b"p/q", b"p/q/r"], id="absent-parents"),
    pytest.param([[directory(b"c"), symlink(b"a", b"c"), f(b"a/b")]], [b"a", b"c", b"c/b"], id="symlink-as-parent"),
    pytest.param(
        [[directory(b"c"), symlink(b"a", b"../../x/../c"), f(b"a/b")]],
        [b"a", b"c", b"c/b"],
        id="symlink-as-parent-stays-inside-the-root",
    ),
    pytest.param(
        [[symlink(b"a", b"b"), symlink(b"b", b"d/e"), symlink(b"d/e", b"/c"), f(b"a/x")]],
        [b"a", b"b", b"c", b"c/x", b"d", b"d/e"],
        id="chain-of-symlinks-as-parent",
    ),
    pytest.param(
        [[symlink(b"a", b"new/deep"), f(b"a/b")]],
        [b"a", b"new", b"new/deep", b"new/deep/b"],
        id="dangling-symlink-as-parent",
    ),
    pytest.param(
        [[directory(b"c"), symlink(b"a", b"c")], [f(b"a/b")]],
        [b"a", b"a/b", b"c"],
        id="symlink-of-a-lower-layer-is-not-followed",
    ),
    pytest.param(
        [[f(b"a"), directory(b"d"), f(b"d/x")], [whiteout(b"d/x")], [f(b"a"), directory(b"d"), f(b"d/x")]],
        [b"a", b"d", b"d/x"],
        id="one-layer-twice",
    ),
    pytest.param(
        [
            [directory(b"p", mode=0o2750, uid=5, gid=6, mtime_ns=_T, xattrs=(_USER,)), directory(b"p/q", mode=0o700)],
            [f(b"p/q/r")],
            [f(b"p/q/s"), directory(b"p", mode=0o755, mtime_ns=_T + 1)],
        ],
        [b"p", b"p/q", b"p/q/r", b"p/q/s"],
        id="implied-directories-take-after-lower-ones",
    ),
    pytest.param(
        [[directory(b"p", mode=0o700)], [whiteout(b"p")], [f(b"p/r")]],
        [b"p", b"p/r"],
        id="implied-directory-instead-of-a-removed-one",
    ),
    pytest.param(
        [[directory(b"p", mode=0o700), directory(b"p/q", mode=0o700)], [whiteout(b"p")], [f(b"p/q/r")]],
        [b"p", b"p/q", b"p/q/r"],
        id="implied-directory-below-a-removed-one",
    ),
    pytest.param(
        [[directory(b"c", mode=0o700), f(b"c/f"), symlink(b"a", b"c")], [f(b"a/b")]],
        [b"a", b"a/b", b"c", b"c/f"],
        id="implied-directory-takes-after-a-lower-symlink's-target",
    ),
    pytest.param(
        [[directory(b"p", mode=0o2775, gid=7), f(b"p/q/r")]],
        [b"p", b"p/q", b"p/q/r"],
        id="implied-directory-below-a-set-group-id-one",
    ),
    pytest.param(
        [[directory(b"a", xattrs=(_USER,)), f(b"a/x"), directory(b"a", mode=0o700, xattrs=((b"user.b", b"2"),))]],
        [b"a", b"a/x"],
        id="directory-twice",
    ),
    pytest.param([[f(b"a", b"1"), f(b"a", b"22", mode=0o600, mtime_ns=_T)]], [b"a"], id="file-twice"),
    pytest.param(
        [[directory(b"c", mode=0o700), symlink(b"a", b"c"), directory(b"a", mode=0o711)]],
        [b"a", b"c"],
        id="directory-replaces-a-symlink",
    ),
    pytest.param(
        [[directory(b"a", mtime_ns=_T), f(b"a/x"), directory(b"c", mtime_ns=_T + 2), symlink(b"a", b"c")]],
        [b"a", b"c"],
        id="directory-times-by-path",
    ),
    pytest.param(
        [[directory(b"a", xattrs=(_USER,))], [directory(b"a", xattrs=((b"user.b", b"2"),))]],
        [b"a"],
        id="xattrs-of-a-merged-directory",
    ),
    pytest.param(
        [
            [
                f(b"a", b"data", mode=0o4755, uid=1, xattrs=(CAPABILITY, _USER)),
                hardlink(b"b", b"a", mode=0o600, uid=9, gid=9, mtime_ns=_T + 99),
                f(b"c", mode=0o755, xattrs=(CAPABILITY,)),
                hardlink(b"d", b"c", mode=0o755, xattrs=(CAPABILITY,)),
            ]
        ],
        [b"a", b"b", b"c", b"d"],
        id="hardlink-metadata",
    ),
    pytest.param(
        [[f(b"a"), hardlink(b"b", b"a"), hardlink(b"c", b"a")], [whiteout(b"b"), f(b"c", b"new")]],
        [b"a", b"c"],
        id="hardlinks-partly-hidden",
    ),
    pytest.param([[f(b"a"), hardlink(b"b", b"a"), f(b"a", b"other")]], [b"a", b"b"], id="hardlink-replaced"),
    pytest.param(
        [[directory(b"d"), f(b"d/a"), hardlink(b"b", b"d/a"), f(b"d", b"now a file")]],
        [b"b", b"d"],
        id="hardlink-in-a-removed-directory",
    ),
    pytest.param(
        [[directory(b"d"), f(b"d/a"), symlink(b"l", b"d"), hardlink(b"b", b"l/a")]],
        [b"b", b"d", b"d/a", b"l"],
        id="hardlink-through-a-symlink",
    ),
    pytest.param(
        [[symlink(b"a", b"zz"), hardlink(b"b", b"a", uid=4), fifo(b"p"), hardlink(b"q", b"p")]],
        [b"a", b"b", b"p", b"q"],
        id="hardlinks-to-no-files",
    ),
    pytest.param([[f(b"a")], [hardlink(b"b", b"a")]], [b"a", b"b"], id="hardlink-to-a-lower-layer"),
    pytest.param(
        [
            [
                device(b"c", EntryType.CHARACTER, 1, 3, mode=0o666),
                device(b"b", EntryType.BLOCK, 259, 70_000, gid=6),
                device(b"large", EntryType.CHARACTER, 4095, 1_048_575),
                fifo(b"p", mtime_ns=_T),
            ]
        ],
        [b"b", b"c", b"large", b"p"],
        id="devices",
    ),
    pytest.param(
        [
            [
                f(
                    b"a",
                    xattrs=(CAPABILITY, (b"security.foo", b"bar"), (b"trusted.t", b"1"), (b"unknown.x", b""), _USER),
                ),
                symlink(b"s", b"a", xattrs=((b"trusted.t", b"1"),)),
            ]
        ],
        [b"a", b"s"],
        id="xattrs",
    ),
    pytest.param(
        [[f(b"a", mtime_ns=-5 * 10**9), directory(b"d", mtime_ns=-1), f(b"e", mtime_ns=9_300_000_000 * 10**9)]],
        [b"a", b"d", b"e"],
        id="times-out-of-bounds",
    ),
    pytest.param([[directory(b"", mode=0o700, uid=5, gid=6, mtime_ns=_T), f(b"a")]], [b"a"], id="metadata-of-the-root"),
    pytest.param(
        [[f(b"a", mode=0o6755, uid=4), directory(b"t", mode=0o1777), directory(b"g", mode=0o2755, gid=5)]],
        [b"a", b"g", b"t"],
        id="special-mode-bits",
    ),
    pytest.param(
        [[f(b"q")], [directory(b"n"), whiteout(b"n/x"), f(b"n/y")]],
        [b"n", b"n/y", b"q"],
        id="whiteout-of-nothing-in-a-new-directory",
    ),
    pytest.param(
        [[f("ü".encode()), f(b"\xff\xfe"), f(b"n" * 255), symlink(b"long", b"t/" * 2000)]],
        [b"long", b"n" * 255, "ü".encode(), b"\xff\xfe"],
        id="names",
    ),
]
