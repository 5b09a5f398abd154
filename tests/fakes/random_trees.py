"""Hypothesis strategies: file trees as one layer's entries, whose meaning needs no merging."""

from __future__ import annotations

import random

from fakes.layers import CAPABILITY, Content, device, directory, fifo, hardlink, symlink
from hypothesis import strategies as st

from fastpull.image.layer_index import Entry, EntryType

_NAMES = st.one_of(
    st.sampled_from([b"a", b"b", b"-", b"!", b".a", b"..a", b"...", b"a b", "ü".encode(), b"\xff\xfe", b"\n"]),
    st.binary(min_size=1, max_size=255).filter(lambda n: b"/" not in n and b"\0" not in n and n not in (b".", b"..")),
    st.integers(0, 255).map(lambda n: b"n" * max(n, 1)),
)
_XATTRS = st.one_of(
    st.just(()),
    st.dictionaries(
        st.sampled_from([b"user.a", b"user.b" + b"b" * 200, b"security.x"]), st.binary(max_size=300), max_size=3
    ).map(lambda pairs: tuple(sorted(pairs.items()))),
    st.just((CAPABILITY,)),
)
_META = st.fixed_dictionaries(
    {
        "mode": st.integers(0, 0o7777),
        "uid": st.one_of(st.integers(0, 5), st.integers(0, 2**32 - 2)),
        "gid": st.integers(0, 2**32 - 2),
        "mtime_ns": st.one_of(st.integers(0, 2**61), st.integers(0, 10**9)),
    }
)


@st.composite
def trees(draw: st.DrawFn, content: Content, max_entries: int = 30) -> list[Entry]:
    """Entries with unique paths, parents first, the metadata of each as given (nothing drops any of it)."""
    directories = [b""]
    links: list[Entry] = []
    entries: dict[bytes, Entry] = {}
    for _ in range(draw(st.integers(0, max_entries))):
        parent = draw(st.sampled_from(directories))
        name = draw(_NAMES)
        path = parent + b"/" + name if parent else name
        if path in entries or len(path) > 2000:
            continue
        meta = draw(_META)
        kind = draw(st.sampled_from("dddffffsshnp"))
        if kind == "d":
            entry = directory(path, **meta, xattrs=draw(_XATTRS))
            directories.append(path)
        elif kind == "f":
            size = draw(st.sampled_from([0, 1, 4095, 4096, 4097, 20_000]))
            data = random.Random(draw(st.integers(0, 3))).randbytes(size)
            entry = content.file(path, data, **meta, xattrs=draw(_XATTRS))
            links.append(entry)
        elif kind == "s":
            size = draw(st.sampled_from([1, 10, 3000, 4000, 4032, 4033, 4095]))
            entry = symlink(path, b"t" * size, **{**meta, "mode": 0o777})
        elif kind == "h" and links:
            target = draw(st.sampled_from(links))
            same = {"mode": target.mode, "uid": target.uid, "gid": target.gid, "mtime_ns": target.mtime_ns}
            entry = hardlink(path, target.path, **same, xattrs=target.xattrs)
        elif kind == "n":
            major, minor = draw(st.tuples(st.integers(1, 4095), st.integers(0, 2**20 - 1)))
            entry = device(path, draw(st.sampled_from([EntryType.CHARACTER, EntryType.BLOCK])), major, minor, **meta)
        else:
            entry = fifo(path, **meta)
        entries[path] = entry
    return list(entries.values())
