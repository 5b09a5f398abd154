"""pyfuse3, or what to do without it. Imported only where a mount is served: it takes 20 MB."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from types import ModuleType

from fastpull.fuse_client.portable.errors import PortableUnavailableError


def _stand_ins() -> dict[str, ModuleType]:
    """What pyfuse3 imports and does without.

    trio: in asyncio mode it puts its own module in its place before it uses it. Without the real one a mount comes
    0.1 s sooner, and its process is 5 MB smaller.

    importlib.metadata: only for its ``__version__``, which is "unknown" then. It brings 40 modules (email,
    zipfile) that nothing else here needs: 30 ms of CPU, and from a cold disk a read or more for each.
    """
    metadata = ModuleType("importlib.metadata")
    metadata.PackageNotFoundError = LookupError  # type: ignore[attr-defined]
    metadata.version = lambda _package: "unknown"  # type: ignore[attr-defined]
    return {"trio": ModuleType("trio"), "importlib.metadata": metadata}


@contextlib.contextmanager
def _without_what_is_not_used() -> Iterator[None]:
    """Who has imported the real ones already keeps them."""
    put = {name: module for name, module in _stand_ins().items() if name not in sys.modules}
    sys.modules.update(put)
    try:
        yield
    finally:
        for name in put:
            del sys.modules[name]


try:
    with _without_what_is_not_used():
        import pyfuse3
        import pyfuse3.asyncio
except ImportError as exc:
    raise PortableUnavailableError(str(exc)) from exc

__all__ = ["pyfuse3"]
