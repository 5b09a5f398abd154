"""How large a layer may be before it counts as a bomb."""

from __future__ import annotations

from dataclasses import dataclass

from fastpull.image.errors import LimitExceededError


@dataclass(frozen=True, slots=True)
class LayerLimits:
    """``max_bytes`` bounds the tar and, separately, the files in it (holes of sparse files count)."""

    max_entries: int
    max_path_bytes: int  # of a path or a link target
    max_bytes: int

    @classmethod
    def of_blob(
        cls, blob_bytes: int, *, max_entries: int, max_path_bytes: int, max_layer_bytes: int, max_ratio: float
    ) -> LayerLimits:
        """The limits for a layer whose compressed blob has ``blob_bytes``."""
        return cls(max_entries, max_path_bytes, min(max_layer_bytes, int(blob_bytes * max_ratio)))

    def check_bytes(self, size: int, what: str) -> None:
        """Raise ``LimitExceededError``."""
        if size > self.max_bytes:
            raise LimitExceededError(
                f"{what} would take {size} bytes or more, {self.max_bytes} are allowed for a blob of this size; "
                "raise ingest.max_layer_bytes or ingest.max_ratio if the layer is to be trusted"
            )
