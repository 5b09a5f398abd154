"""Places on a chain's device as paths that people read. Pure."""

from __future__ import annotations

from fastpull.image.file_places import FilePlaces

UNKNOWN = "(unknown)"


class Places(FilePlaces):
    """The files of a bootstrap by their place."""

    def path(self, offset: int) -> str:
        """The file whose content stands at ``offset``."""
        file = self.at(offset)
        if file is None:
            return UNKNOWN
        # Names that are no UTF-8 can not stand in JSON: their bytes as \\xNN.
        return "/" + file.path.decode("utf-8", "backslashreplace")
