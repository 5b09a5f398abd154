"""What is wrong with an image. Whoever meets one of these falls back to a normal pull."""

from __future__ import annotations


class ImageError(Exception):
    """Base of everything this package raises on purpose: the image's bytes, not ours, are to blame."""


class LayerFormatError(ImageError):
    """A layer is no tar, or its compression is broken or cut."""


class LayerDigestError(ImageError):
    """A layer's bytes do not have the digest or the diffID that the image promises."""


class UnsafeEntryError(ImageError):
    """A tar entry would leave the root file system."""


class LimitExceededError(ImageError):
    """A layer is larger than the settings allow (entries, path length, bytes, ratio): perhaps a bomb."""


class UnsupportedMediaTypeError(ImageError):
    """A layer of a kind that is not understood."""


class IndexFormatError(ImageError):
    """A layer index, bootstrap or chunk map is damaged or of a newer version."""
