"""``fastpull-node report``: where the seconds of a start went."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import sys
from array import array
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

import msgspec

from fastpull.cache.digest import Digest
from fastpull.cache.wire import ChainState
from fastpull.config.node import NodeSettings
from fastpull.fuse_client.chain_files import CHUNK_MAP, ChainFiles, unpack
from fastpull.fuse_client.cli.connection import DaemonConnection
from fastpull.fuse_client.errors import (
    DaemonError,
    ImageNotFoundError,
    NodeError,
    ProxyAnswerError,
    ProxyError,
    StartUnknownError,
)
from fastpull.fuse_client.fetch.client import Artifact, ProxyClient
from fastpull.fuse_client.report.analysis import KnownLayer, Report, analyse
from fastpull.fuse_client.report.html import page
from fastpull.fuse_client.report.places import UNKNOWN, Places
from fastpull.fuse_client.report.text import report_lines
from fastpull.fuse_client.start_record import StartFiles, StartRecord
from fastpull.image.chunk_map import ChunkMap
from fastpull.image.erofs.reader import Bootstrap

log = logging.getLogger(__name__)

_CHAIN = re.compile(r"(sha256:)?[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class _Surroundings:
    """What the record itself does not know. Without it the report is poorer, not wrong."""

    places: Places | None = None
    layers: tuple[KnownLayer, ...] = ()
    layer_of_places: tuple[int, ...] = ()
    sizes: tuple[int, ...] = ()


def report(settings: NodeSettings, name: str, platform: str, *, as_json: bool, html: Path | None) -> int:
    """Run the command; return the exit code."""
    record, image = asyncio.run(_find(settings, name, platform))
    around = asyncio.run(_surroundings(settings, Digest.parse(record.chain_id)))
    places = around.places
    found = analyse(
        record,
        places.path if places is not None else lambda _: UNKNOWN,
        image=image,
        layers=around.layers,
        layer_of_places=around.layer_of_places,
        sizes=around.sizes,
    )
    if places is None:
        sys.stderr.write("fastpull-node: the image's index is not here and no proxy gives it: files have no names\n")
    _write(found, as_json=as_json, html=html)
    return 0


def _write(found: Report, *, as_json: bool, html: Path | None) -> None:
    if html is not None:
        html.write_text(page(found), encoding="utf-8")
        if not as_json:
            sys.stdout.write(f"the report is written to {html}\n")
    if as_json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(found)).decode() + "\n")
    elif html is None:
        sys.stdout.writelines(line + "\n" for line in report_lines(found))


async def _find(settings: NodeSettings, name: str, platform: str) -> tuple[StartRecord, str]:
    """The record, and the image's name if that was asked for.

    A name may be a chain, a container that runs here, or an image that the proxy knows, in this order.
    """
    if not name:
        return _record(settings, {}, None), ""
    if _CHAIN.fullmatch(name):
        chain = Digest.parse(name if ":" in name else f"sha256:{name}")
        try:
            return _record(settings, {"chain": str(chain)}, chain), ""
        except StartUnknownError:
            if ":" in name:
                raise  # otherwise it may be a container: CRI names them by 64 hex digits
    daemon = DaemonConnection(settings.run_dir)
    if daemon.is_served:
        try:
            return daemon.last_start(urlencode({"container": name})), ""
        except StartUnknownError:
            if re.fullmatch(r"[0-9a-f]{6,64}", name):
                raise
    async with ProxyClient.open(settings) as client:
        try:
            info = await client.image(name, platform)
        except ProxyAnswerError as exc:
            raise ImageNotFoundError(
                f"{name} is no container of this node, and as an image: {exc.message}", remedy=exc.remedy
            ) from exc
    chain = Digest.parse(info.chain_id)
    return _record(settings, {"chain": str(chain)}, chain), info.image


def _record(settings: NodeSettings, query: dict[str, str], chain: Digest | None) -> StartRecord:
    """From the daemon, which knows of starts that go on; without one from its files."""
    daemon = DaemonConnection(settings.run_dir)
    if daemon.is_served:
        return daemon.last_start(urlencode(query))
    files = StartFiles(settings.root)
    found = files.read(chain) if chain is not None else files.latest()
    if found is None:
        if os.geteuid() != 0:
            raise DaemonError("no daemon answers, and only root may read its files", remedy="run this with sudo")
        raise StartUnknownError(f"no start of {f'chain {chain}' if chain else 'any image'} is recorded here")
    return found


async def _surroundings(settings: NodeSettings, chain: Digest) -> _Surroundings:
    bootstrap, pieces = _local(settings, chain)
    try:
        async with ProxyClient.open(settings) as client:
            state = await client.chain_state(chain)
            if bootstrap is None:
                bootstrap = await _fetched(client, chain, state, "bootstrap")
            if pieces is None:
                pieces = await _fetched(client, chain, state, "chunkmap")
            known = await client.layers(chain)
    except NodeError as exc:
        log.info("the layers stay unknown: %s", exc)
        return _Surroundings(_places(bootstrap) if bootstrap else None)
    by_diff_id = {layer.diff_id: layer for layer in state.layers}
    layers = tuple(
        KnownLayer(by_diff_id[diff_id].digest, by_diff_id[diff_id].blob_bytes)
        if diff_id in by_diff_id
        else KnownLayer(diff_id, 0)
        for diff_id in known.diff_ids
    )
    of_places = array("H")
    of_places.frombytes(known.of_places[: len(known.of_places) // 2 * 2])
    with ChunkMap.open(pieces) as chunk_map:
        sizes = tuple(map(chunk_map.size_at, range(len(chunk_map))))
    return _Surroundings(_places(bootstrap), layers, tuple(of_places), sizes)


def _places(bootstrap: bytes) -> Places:
    with Bootstrap.open(bootstrap) as opened:
        return Places.of(opened)


def _local(settings: NodeSettings, chain: Digest) -> tuple[bytes | None, bytes | None]:
    files = ChainFiles(settings.root)
    if files.record(chain) is None:
        return None, None
    try:
        return files.bootstrap(chain).read_bytes(), (files.directory(chain) / CHUNK_MAP).read_bytes()
    except OSError:
        return None, None


async def _fetched(client: ProxyClient, chain: Digest, state: ChainState, which: Artifact) -> bytes:
    if state.state != "ready":
        raise ProxyError(f"the chain is {state.state} at the proxy")
    digest, size = {
        "bootstrap": (state.bootstrap_digest, state.bootstrap_bytes),
        "chunkmap": (state.chunk_map_digest, state.chunk_map_bytes),
    }[which]
    encoding, raw = await client.artifact(chain, which, size + size // 64 + 4096)
    return b"".join(unpack(chain, which, encoding, raw, digest, size))
