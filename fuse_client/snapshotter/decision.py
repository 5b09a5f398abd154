"""Whether a layer is served lazily. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastpull.cache.digest import Digest, chain_ids
from fastpull.cache.errors import MalformedDigestError
from fastpull.cache.wire import ChainState
from fastpull.fuse_client.snapshotter.records import Snapshot


@dataclass(frozen=True, slots=True)
class Verdict:
    """``chains``: every prefix of the chain, shortest first, to be placed; empty = containerd unpacks."""

    chains: tuple[Digest, ...]
    reason: str


def needs_no_question(target: Digest, line: Sequence[Snapshot], known: Snapshot | None) -> Verdict | None:
    """The verdict on ``target`` over the parent ``line`` (top first) if it follows from our records alone.

    An image is served in one way from the first layer that containerd unpacked itself upward: that layer's
    blobs have to be fetched, and containerd then fetches all above it too.
    """
    if any(below.chain is None for below in line):
        return Verdict((), "a layer below was unpacked by containerd")
    parent = line[0].name if line else ""
    if known is None:
        return None
    if known.chain == target and known.parent == parent:
        return Verdict((*_chains_of(line), target), "it is there already")
    return Verdict((), f"{target} is there already, over another parent")


def decide(target: Digest, line: Sequence[Snapshot], state: ChainState) -> Verdict:
    """The verdict after the proxy has been asked. The parent ``line`` holds placeholders only."""
    if state.state != "ready":
        return Verdict((), f"the proxy says {state.state}" + (f": {state.error}" if state.error else ""))
    below = _chains_of(line)
    if state.layers and proven_prefixes(target, state) != (*below, target):
        return Verdict((), "the proxy knows the chain with other layers below")
    return Verdict((*below, target), "the proxy has it")


def proven_prefixes(chain: Digest, state: ChainState) -> tuple[Digest, ...]:
    """Every prefix of the chain, shortest first, from the layers that the proxy names; empty if they do not
    hash to the chain. A chainID is a hash over its diffIDs, so the proxy's word is checked here.
    """
    try:
        prefixes = chain_ids(Digest.parse(layer.diff_id) for layer in state.layers)
    except MalformedDigestError:
        return ()
    return tuple(prefixes) if prefixes and prefixes[-1] == chain else ()


def _chains_of(line: Sequence[Snapshot]) -> tuple[Digest, ...]:
    return tuple(chain for below in reversed(line) if (chain := below.chain) is not None)
