"""Images with everything in them that a layer may hold: each a list of layers, to be pushed by ``ImageMaker``."""

from __future__ import annotations

import io
import random
import struct
import tarfile
from collections.abc import Callable, Iterator

from harness.images import ImageMaker
from harness.oci import TarEntry, device, directory, entry, file, hardlink, opaque, symlink, tar_bytes, whiteout

Push = Callable[[ImageMaker], str]

# security.capability of cap_net_raw+ep, VFS_CAP_REVISION_2 (linux/capability.h).
_CAPABILITY = struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0).decode("latin-1")


def noise(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def with_xattrs(one: TarEntry, **values: str) -> TarEntry:
    one.info.pax_headers = {
        **one.info.pax_headers,
        **{f"SCHILY.xattr.{name.replace('__', '.')}": value for name, value in values.items()},
    }
    return one


def at(one: TarEntry, mtime: str) -> TarEntry:
    """The modification time as PAX gives it: any sign, any number of digits."""
    one.info.pax_headers = {**one.info.pax_headers, "mtime": mtime}
    return one


def plain(images: ImageMaker) -> str:
    return images.push([directory("app"), file("app/data", noise(1, 3_000_000)), symlink("app/link", "data")])


def zstd_layers(images: ImageMaker) -> str:
    return images.push(
        [directory("z"), file("z/one", noise(2, 700_000)), file("z/text", b"line\n" * 90_000)],
        [file("z/two", noise(3, 70_000))],
        compression="zstd-frames",
    )


def multi_member_gzip(images: ImageMaker) -> str:
    return images.push(
        [directory("m"), file("m/big", noise(4, 5_000_000) + bytes(3_000_000))], compression="gzip-members"
    )


def hundred_layers(images: ImageMaker) -> str:
    """Each adds a file and removes that of the layer before; all share one directory's entry."""
    layers: list[list[TarEntry]] = []
    for number in range(99):
        layers.append([directory("many"), file(f"many/{number:03}", noise(100 + number, 5_000 + number))])
        if number:
            layers[-1].append(whiteout(f"many/{number - 1:03}"))
    return images.push(*layers)


def every_kind(images: ImageMaker) -> str:
    """Hard links, devices, xattrs, setuid files, times, owners, names."""
    return images.push(
        [
            directory("k", mode=0o1777, uid=7, gid=8),
            file("k/original", noise(5, 100_000), mode=0o4755, uid=1000, gid=1001),
            hardlink("k/again", "k/original"),
            hardlink("k/once more", "k/original"),
            device("k/null", 1, 3, mode=0o666),
            device("k/disk", 259, 1048575, block=True),
            entry("k/pipe", tarfile.FIFOTYPE, mode=0o620),
            with_xattrs(file("k/ping", b"#!", mode=0o755), security__capability=_CAPABILITY),
            with_xattrs(file("k/labelled", b"x"), user__note="a remark", user__empty="", trusted__long="v" * 3000),
            with_xattrs(directory("k/marked"), user__directory="yes"),
            at(file("k/precise"), "1600000000.123456789"),
            at(file("k/before the epoch"), "-1.5"),
            at(directory("k/dated"), "1234567890.000000001"),
            file("k/" + "n" * 255, b"a name of 255 bytes"),
            file("k/not \udcff utf-8", b"bytes"),
            symlink("k/dangling", "/nowhere/" + "x" * 3000),
            symlink("k/owned link", "original", uid=5, gid=6),
            file("k/secret", b"", mode=0o000, uid=4_000_000_000, gid=4_000_000_001),
            file("k/setgid", b"g", mode=0o2750),
        ],
        # In a later layer: metadata alone, and one of the linked names replaced.
        [directory("k", mode=0o755, uid=0, gid=0), file("k/again", b"no link any more")],
    )


def replacements(images: ImageMaker) -> str:
    """Whiteouts of every kind; a file that becomes a directory and back; a directory that becomes a link."""
    first = [
        directory("w"),
        file("w/file to directory and back", b"1"),
        directory("w/directory to file"),
        file("w/directory to file/inner", b"inner"),
        directory("w/hidden"),
        file("w/hidden/below", b"below"),
        directory("w/kept"),
        file("w/kept/a", b"a"),
        file("w/kept/b", b"b"),
        directory("w/gone"),
        file("w/gone/deep", b"deep"),
        directory("w/becomes link"),
        file("w/rewritten", b"old content"),
        file("w/only mode", b"same", mode=0o600),
    ]
    second = [
        directory("w"),
        whiteout("w/file to directory and back"),
        directory("w/file to directory and back"),
        file("w/file to directory and back/inside", b"2"),
        file("w/directory to file", b"now a file"),
        directory("w/hidden"),
        opaque("w/hidden"),
        file("w/hidden/above", b"above"),
        directory("w/kept"),
        whiteout("w/kept/a"),
        whiteout("w/gone"),
        whiteout("w/never was"),
        whiteout("w/becomes link"),
        file("w/rewritten", b"new content, longer than before"),
        file("w/only mode", b"same", mode=0o640),
    ]
    third = [
        directory("w"),
        file("w/file to directory and back", b"3"),
        symlink("w/becomes link", "kept"),
        directory("w/gone"),
        file("w/gone/anew", b"anew"),
    ]
    return images.push(first, second, third)


def huge_directory(images: ImageMaker) -> str:
    """50,000 entries in one directory, 200 bytes each."""
    files = [file(f"huge/{number:05}", b"%d\n" % number * 40) for number in range(50_000)]
    return images.push([directory("huge"), *files])


def empty_and_twice(images: ImageMaker) -> str:
    """An empty layer in the middle, and one layer twice."""
    layout = images.layout
    base = layout.add_tar(io.BytesIO(tar_bytes([directory("e"), file("e/base", noise(6, 40_000))])))
    empty = layout.add_tar(io.BytesIO(tar_bytes([])))
    again = layout.add_tar(io.BytesIO(tar_bytes([directory("e"), file("e/twice", b"twice"), file("e/base", b"new")])))
    return images.push_layers([base, empty, again, empty, again])


def tar_oddities(images: ImageMaker) -> str:
    """What archivers of fifty years have written: formats, prefixes, cut ends, sparse files, an entry twice."""
    return images.push_layers([images.layout.add_tar(io.BytesIO(tar)) for tar in _odd_tars()])


_LAST = b"the last bytes of the archive"


def _odd_tars() -> Iterator[bytes]:
    for number, form in enumerate((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)):
        yield _tar(form, number)
    whole = _tar(tarfile.GNU_FORMAT, 3)
    yield whole[: whole.rindex(_LAST) + len(_LAST)]  # neither end-of-archive nor padding of the last block
    yield b""  # no entry at all, not even an end


def _tar(form: int, number: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form, encoding="utf-8", errors="surrogateescape") as archive:
        top = f"odd{number}"
        long = "/".join(["d" * 60] * 3) if form == tarfile.USTAR_FORMAT else "/".join(["d" * 150] * 3)
        entries = [
            directory(f"./{top}/"),
            file(f"./{top}/dotted", b"dotted"),
            file(f"/{top}/absolute", b"absolute"),
            file(f"{top}//double", b"double"),
            file(f"{top}/twice", b"first", mode=0o600),
            file(f"{top}/twice", b"the last counts", mode=0o644),
            file(f"{top}/x/../plain", b"plain"),
            directory(f"{top}/{long.split('/')[0]}"),
            directory(f"{top}/{'/'.join(long.split('/')[:2])}"),
            directory(f"{top}/{long}"),
            file(f"{top}/{long}/file", noise(10 + number, 20_000)),
            file(f"{top}/.wh..wh.plnk", b""),  # AUFS' own metadata: skipped
            directory(f"{top}/", mode=0o750),
            file(f"{top}/last", _LAST),
        ]
        for info, content in entries:
            archive.addfile(info, io.BytesIO(content) if info.isreg() else None)
    return buffer.getvalue()


def mixed_compression(images: ImageMaker) -> str:
    """One image, three compressions; the media type of the last one lies, its bytes do not."""
    layout = images.layout
    tars = [tar_bytes([directory("c"), file(f"c/{n}", noise(20 + n, 60_000))]) for n in range(3)]
    layers = [
        layout.add_tar(io.BytesIO(tars[0]), compression="none"),
        layout.add_tar(io.BytesIO(tars[1]), compression="zstd"),
        layout.add_tar(io.BytesIO(tars[2]), compression="gzip"),
    ]
    return images.push_layers(layers)


IMAGES: dict[str, Push] = {
    "plain": plain,
    "zstd layers": zstd_layers,
    "multi-member gzip": multi_member_gzip,
    "a hundred layers": hundred_layers,
    "every kind of entry": every_kind,
    "replacements": replacements,
    "a huge directory": huge_directory,
    "an empty layer, one layer twice": empty_and_twice,
    "tar oddities": tar_oddities,
    "mixed compression": mixed_compression,
}

# containerd makes these without an entry of their own, at the time of unpacking.
IMPLIED: dict[str, set[str]] = {"tar oddities": {f"odd{n}/x" for n in range(4)}}
