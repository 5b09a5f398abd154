"""From an image's name to a chain that the proxy can serve."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

from fastpull.cache.digest import Digest
from fastpull.cache.wire import ChainState, WarmState
from fastpull.fuse_client.errors import ImageNotFoundError, ProxyAnswerError
from fastpull.fuse_client.fetch.client import ProxyClient

POLL_SECONDS = 0.3


class WarmProgress:
    """One bar on a terminal; elsewhere a line for each layer that is done."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._bar: TaskID | None = None
        self._told: set[str] = set()

    def show(self, state: WarmState) -> None:
        layers = {layer.diff_id: layer for layer in state.layers}.values()
        ready = [layer for layer in layers if layer.stage == "ready"]
        if self._progress is None:
            for layer in ready:
                if layer.diff_id not in self._told:
                    self._told.add(layer.diff_id)
                    sys.stderr.write(f"indexed layer {layer.digest[7:19]}, {len(self._told)} of {len(layers)}\n")
            return
        total = sum(layer.blob_bytes for layer in layers)
        done = sum(layer.blob_bytes if layer.stage == "ready" else layer.indexed_bytes for layer in layers)
        if self._bar is None:
            self._bar = self._progress.add_task("indexing", total=None)
        self._progress.update(
            self._bar, description=f"indexing {len(ready)}/{len(layers)} layers", total=total or None, completed=done
        )


@contextlib.contextmanager
def warm_progress() -> Iterator[WarmProgress]:
    console = Console(stderr=True)
    if not console.is_terminal:
        yield WarmProgress(None)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        yield WarmProgress(progress)


async def ready_chain(client: ProxyClient, image: str, platform: str, progress: WarmProgress) -> ChainState:
    """The state of the image's chain, ready; the proxy indexes the image first where it has not yet.

    Raise ``ImageNotFoundError`` with the proxy's reason, or ``ProxyError``.
    """
    try:
        info = await client.image(image, platform)
    except ProxyAnswerError as exc:
        if exc.status >= 500:
            raise
        raise ImageNotFoundError(f"{image}: {exc.message}", remedy=exc.remedy) from exc
    if not info.chain_id:
        raise ImageNotFoundError(f"{image} has no layers, so there is nothing to look at")
    chain = Digest.parse(info.chain_id)
    state = await client.chain_state(chain)
    if state.state == "ready":
        return state
    await _warm(client, image, platform, progress)
    state = await client.chain_state(chain, wait_seconds=10.0)
    if state.state != "ready":
        raise ImageNotFoundError(f"{image} can not be served lazily: {state.error or state.state}")
    return state


async def _warm(client: ProxyClient, image: str, platform: str, progress: WarmProgress) -> None:
    warm = await client.warm(image, platform)
    while warm.stage not in ("done", "failed"):
        progress.show(warm)
        await asyncio.sleep(POLL_SECONDS)
        warm = await client.warm_state(warm.id)
    progress.show(warm)
    if warm.stage == "failed":
        raise ImageNotFoundError(f"{image}: {warm.error}", remedy=warm.remedy)
