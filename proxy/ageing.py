"""Which plans, built chains and layer indexes nobody has needed for so long that they go. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from fastpull.proxy.ingest.state import ImageRecord


@dataclass(frozen=True, slots=True)
class Kept:
    """What the proxy's tables hold that can be had again."""

    plans: Collection[str]  # by chainID
    chains: Collection[str]  # built ones, by chainID
    indexes: Collection[str]  # by diffID


@dataclass(frozen=True, slots=True)
class Aged:
    """What goes, in the order in which it goes: a built chain never outlives an index that it was built from."""

    plans: tuple[str, ...] = ()
    chains: tuple[str, ...] = ()
    indexes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.plans) + len(self.chains) + len(self.indexes)


def chains_in_use(images: Iterable[ImageRecord], uses: Mapping[str, float], since: float) -> set[str]:
    """The chains that were asked for at ``since`` or later, by a node or by a pull, and those of warmed images.

    A warmed image stays until it is purged: somebody asked for it to be kept.
    """
    used = {chain for chain, at in uses.items() if at >= since}
    return used | {image.chain_id for image in images if image.chain_id and (image.warmed or image.seen_at >= since)}


def aged(
    kept: Kept,
    in_use: Iterable[str],
    prefixes: Callable[[str], Sequence[str]],
    diff_ids: Callable[[str], Sequence[str]],
    most: int,
) -> Aged:
    """At most ``most`` of what no chain ``in_use`` needs: plans first, then chains, then indexes.

    A chain in use needs itself, the chains beneath it (``prefixes``, with itself) and their layers (``diff_ids``).
    What is left over by the bound goes in a later round, in the same order.
    """
    needed_chains: set[str] = set()
    needed_layers: set[str] = set()
    for chain in in_use:
        needed_chains.add(chain)  # also one whose links are lost
        needed_chains.update(prefixes(chain))
        needed_layers.update(diff_ids(chain))
    plans = tuple(islice(sorted(set(kept.plans) - needed_chains), most))
    chains = tuple(islice(sorted(set(kept.chains) - needed_chains), most - len(plans)))
    indexes = tuple(islice(sorted(set(kept.indexes) - needed_layers), most - len(plans) - len(chains)))
    return Aged(plans, chains, indexes)
