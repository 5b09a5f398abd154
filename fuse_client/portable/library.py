"""pyfuse3, or what to do without it. Imported only where a mount is served: it takes 40 MB, trio included."""

from __future__ import annotations

from fastpull.fuse_client.portable.errors import PortableUnavailableError

try:
    import pyfuse3
    import pyfuse3.asyncio
except ImportError as exc:
    raise PortableUnavailableError(str(exc)) from exc

__all__ = ["pyfuse3"]
