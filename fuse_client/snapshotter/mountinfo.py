"""What is mounted, and what the mounts stand on: ``/proc/self/mountinfo`` (proc(5)). The parser is pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

_OCTAL = re.compile(r"\\([0-7]{3})")
_LAYER_OPTIONS = ("lowerdir", "lowerdir+", "datadir+", "upperdir", "workdir")


@dataclass(frozen=True, slots=True)
class MountedFs:
    """One line of mountinfo."""

    device: str  # "major:minor" of the file system
    root: str  # of the mount within its file system: the source of a bind mount
    target: str
    fs_type: str
    layers: tuple[str, ...]  # overlay: all directories it stands on, as given to mount(2)


def parse_mountinfo(text: str) -> list[MountedFs]:
    """Lines that are none are skipped: a newer kernel may say more, never less."""
    mounts = []
    for line in text.splitlines():
        fields, separator, rest = line.partition(" - ")
        head, tail = fields.split(" "), rest.split(" ")
        if not separator or len(head) < 6 or len(tail) < 3:
            continue
        layers = tuple(_overlay_layers(tail[2])) if tail[0] == "overlay" else ()
        mounts.append(MountedFs(head[2], _plain(head[3]), _plain(head[4]), tail[0], layers))
    return mounts


def read_mountinfo() -> list[MountedFs]:
    return parse_mountinfo(Path("/proc/self/mountinfo").read_text(errors="surrogateescape"))


def mounted_below(mounts: Iterable[MountedFs], directory: Path) -> list[str]:
    """The mount points at or beneath ``directory``."""
    return [mount.target for mount in mounts if _is_at_or_below(mount.target, str(directory))]


def uses_of(mounts: Iterable[MountedFs], directory: Path) -> list[str]:
    """The mount points whose content comes from ``directory``: overlays on it, bind mounts of it or of what
    is mounted on it.

    containerd shortens long ``lowerdir`` lists to paths relative to their common parent, and a bind mount's
    root is relative to its file system: both are compared by their end, so that the answer may be too many,
    never too few.
    """
    wanted = str(directory)
    known = list(mounts)
    mounted_there = [mount for mount in known if mount.target == wanted]
    return [
        mount.target
        for mount in known
        if any(_may_be_in(layer, wanted) for layer in mount.layers)
        or (
            mount.target != wanted
            and (
                any(_is_copy(mount, original) for original in mounted_there)
                or (mount.root != "/" and _may_be_root(mount.root, wanted))
            )
        )
    ]


def _overlay_layers(options: str) -> Iterator[str]:
    for option in re.split(r"(?<!\\),", options):
        key, _, value = option.partition("=")
        if key in _LAYER_OPTIONS:
            yield from (_plain(path.replace("\\:", ":")) for path in re.split(r"(?<!\\):", value) if path)


def _is_at_or_below(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def _is_copy(mount: MountedFs, original: MountedFs) -> bool:
    return mount.device == original.device and _is_at_or_below(mount.root, original.root)


def _may_be_in(layer: str, directory: str) -> bool:
    if layer.startswith("/"):
        return _is_at_or_below(layer, directory)
    # "12/fs" for ".../snapshots/12": some tail of the directory is a head of the layer's path.
    parts, relative = directory.split("/"), layer.split("/")
    return any(parts[-count:] == relative[:count] for count in range(1, min(len(parts), len(relative)) + 1))


def _may_be_root(root: str, directory: str) -> bool:
    # The directory's path within its file system is a tail of its full path, so the root of a bind mount
    # of it (or of something in it) is such a tail, perhaps continued.
    parts = directory.split("/")[1:]
    return any(_is_at_or_below(root, "/" + "/".join(parts[start:])) for start in range(len(parts) - 1))


def _plain(text: str) -> str:
    return _OCTAL.sub(lambda match: chr(int(match.group(1), 8)), text)
