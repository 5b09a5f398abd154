"""Names and labels. They come from image authors, pods and clients: nothing in them is trusted.

The only label that decides anything is ``containerd.io/snapshot.ref``, and only if it is a digest.
"""

from __future__ import annotations

from collections.abc import Mapping

from fastpull.cache.digest import Digest
from fastpull.cache.errors import MalformedDigestError
from fastpull.fuse_client.snapshotter.errors import SnapshotInvalidError

SNAPSHOT_REF = "containerd.io/snapshot.ref"
"""The chainID that an extraction is for. Set by containerd's unpacker since 1.4, whatever the configuration."""

IMAGE_LAYERS = "containerd.io/snapshot/cri.image-layers"
"""Optional hint: the layers of the image from this one upward, comma separated."""

MAX_NAME_BYTES = 4096
MAX_LABEL_BYTES = 4096  # containerd's own bound for key + value (pkg/labels)
MAX_LABELS = 256


def check_name(text: str, what: str) -> None:
    """Raise ``SnapshotInvalidError`` unless ``text`` may name a snapshot."""
    if not text or len(text.encode()) > MAX_NAME_BYTES or "\0" in text:
        raise SnapshotInvalidError(f"{what} {text[:80]!r} must be 1 to {MAX_NAME_BYTES} bytes without NUL")


def checked_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """A copy without empty values (to containerd they mean "not set"). Raise ``SnapshotInvalidError``."""
    if len(labels) > MAX_LABELS:
        raise SnapshotInvalidError(f"{len(labels)} labels; at most {MAX_LABELS} are accepted")
    for key, value in labels.items():
        if not key or len(key.encode()) + len(value.encode()) > MAX_LABEL_BYTES:
            raise SnapshotInvalidError(f"label {key[:80]!r}: key and value must be 1 to {MAX_LABEL_BYTES} bytes")
    return {key: value for key, value in labels.items() if value}


def extraction_target(labels: Mapping[str, str]) -> Digest | None:
    """The chain that is to be unpacked, or None if this is no extraction (or its label is no digest)."""
    return parse_chain(labels.get(SNAPSHOT_REF, ""))


def parse_chain(name: str) -> Digest | None:
    """The chain that a snapshot name stands for. Clients' keys arrive as ``<namespace>/<n>/<key>``, so
    only names that we gave ourselves are bare digests.
    """
    try:
        return Digest.parse(name)
    except MalformedDigestError:
        return None


def is_top_layer(labels: Mapping[str, str]) -> bool:
    """Whether the labels, if they say so at all, call this the image's last layer."""
    hint = labels.get(IMAGE_LAYERS, "")
    return bool(hint) and "," not in hint
