"""``fuse_client/chains.py`` without a proxy: trees are directories, and a mount is a bind mount or none."""

from __future__ import annotations

import asyncio
import ctypes
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fastpull.cache.digest import Digest, chain_ids
from fastpull.cache.wire import ChainState, LayerProgress
from fastpull.fuse_client.errors import ChainUnknownError

_MS_RDONLY, _MS_REMOUNT, _MS_BIND = 1, 32, 4096
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass
class FakeChains:
    """``with_mounts``: bind-mount the trees (root needed). ``fault`` is called before every answer."""

    root: Path
    with_mounts: bool = False
    fault: Callable[[str, Digest], None] = lambda _what, _chain: None
    calls: list[tuple[str, Digest]] = field(default_factory=list)
    _trees: dict[Digest, Path] = field(default_factory=dict)
    _states: dict[Digest, ChainState] = field(default_factory=dict)
    _mounted: dict[Digest, Path] = field(default_factory=dict)
    _mount_gate: asyncio.Event | None = None

    # ------------------------------------------------------------------------- what the tests arrange

    def add(self, diff_ids: Sequence[Digest | str], tree: Path | None = None, *, state: str = "ready") -> list[Digest]:
        """Know every prefix of a chain. All of them get ``tree``: nobody should look into a prefix."""
        parsed = [Digest.parse(str(diff_id)) for diff_id in diff_ids]
        chains = chain_ids(parsed)
        for count, chain in enumerate(chains, start=1):
            layers = tuple(LayerProgress(digest=str(one), diff_id=str(one), stage="ready") for one in parsed[:count])
            self._states[chain] = ChainState(chain_id=str(chain), state=state, layers=layers)  # type: ignore[arg-type]
            self._trees[chain] = tree or self.root
        return chains

    def forget(self, chain: Digest) -> None:
        self._states.pop(chain, None)

    def hold_mounts(self) -> asyncio.Event:
        """Let mounts wait until the event is set (on their loop)."""
        self._mount_gate = asyncio.Event()
        return self._mount_gate

    def count(self, what: str, chain: Digest | None = None) -> int:
        return sum(1 for name, of in self.calls if name == what and chain in (None, of))

    # ----------------------------------------------------------------------- what the snapshotter calls

    async def state(self, chain_id: Digest, wait_seconds: float) -> ChainState:
        self._note("state", chain_id)
        known = self._states.get(chain_id)
        return known or ChainState(chain_id=str(chain_id), state="unknown")

    async def mount(self, chain_id: Digest) -> Path:
        self._note("mount", chain_id)
        if self._mount_gate is not None:
            await self._mount_gate.wait()
        if chain_id not in self._trees:
            raise ChainUnknownError(chain_id)
        point = self.path_of(chain_id)
        if chain_id not in self._mounted:
            point.mkdir(parents=True, exist_ok=True)
            if self.with_mounts and not os.path.ismount(point):
                _mount(self._trees[chain_id], point, _MS_BIND)
                _mount(self._trees[chain_id], point, _MS_BIND | _MS_REMOUNT | _MS_RDONLY)
            self._mounted[chain_id] = point
        return point

    async def unmount(self, chain_id: Digest) -> None:
        self._note("unmount", chain_id)
        if (
            self._mounted.pop(chain_id, None)
            and self.with_mounts
            and _libc.umount2(os.fsencode(self.path_of(chain_id)), 0)
        ):
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))

    def path_of(self, chain_id: Digest) -> Path:
        return self.root / "chains" / chain_id.hex / "rootfs"

    def mounted(self) -> Mapping[Digest, Path]:
        return dict(self._mounted)

    def _note(self, what: str, chain: Digest) -> None:
        self.calls.append((what, chain))
        self.fault(what, chain)


def _mount(source: Path, target: Path, flags: int) -> None:
    if _libc.mount(os.fsencode(source), os.fsencode(target), None, flags, None):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), str(target))
