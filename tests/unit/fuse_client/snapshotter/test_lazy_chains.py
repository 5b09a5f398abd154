"""Early mounts, and mounts against unmounts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from fakes.chains import FakeChains

from fastpull.cache.digest import Digest
from fastpull.fuse_client.snapshotter.lazy_chains import LazyChains

LAYERS = [Digest.of(b"1"), Digest.of(b"2")]
BOUND_SECONDS = 30


@pytest.fixture
async def lazy(chains: FakeChains) -> AsyncIterator[LazyChains]:
    lazy = LazyChains(chains, quiet_seconds=0.01)
    lazy.allow_mounts()
    yield lazy
    await lazy.aclose()


async def mounted(chains: FakeChains, chain: Digest) -> None:
    async with asyncio.timeout(BOUND_SECONDS):
        while chain not in chains.mounted():
            await asyncio.sleep(0.005)


async def test_a_layer_that_gets_another_on_top_is_not_mounted(lazy: LazyChains, chains: FakeChains) -> None:
    lower, upper = chains.add(LAYERS)
    lazy.expect(lower, now=False)
    lazy.no_longer_expect(lower)
    lazy.expect(upper, now=False)

    await mounted(chains, upper)

    assert chains.count("mount", lower) == 0


async def test_those_who_wait_share_one_mount_and_may_give_up(lazy: LazyChains, chains: FakeChains) -> None:
    """The next one who asks finds it further on."""
    [chain] = chains.add(LAYERS[:1])
    gate = chains.hold_mounts()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(lazy.mount(chain), 0.01)

    async with asyncio.timeout(BOUND_SECONDS), asyncio.TaskGroup() as group:
        waiting = [group.create_task(lazy.mount(chain)) for _ in range(3)]
        await asyncio.sleep(0)
        gate.set()

    assert {task.result() for task in waiting} == {chains.path_of(chain)}
    assert chains.count("mount") == 1


async def test_a_chain_wanted_again_while_it_is_being_unmounted_ends_up_mounted(
    lazy: LazyChains, chains: FakeChains
) -> None:
    [chain] = chains.add(LAYERS[:1])
    await lazy.mount(chain)

    async with asyncio.timeout(BOUND_SECONDS), asyncio.TaskGroup() as group:
        unmounted = group.create_task(lazy.release(chain, lambda: True))
        group.create_task(lazy.mount(chain))

    assert unmounted.result()
    assert chain in chains.mounted()


async def test_a_chain_that_is_not_released_any_more_is_kept(lazy: LazyChains, chains: FakeChains) -> None:
    [chain] = chains.add(LAYERS[:1])
    await lazy.mount(chain)

    assert not await lazy.release(chain, lambda: False)
    assert chain in chains.mounted()


async def test_nothing_is_mounted_before_it_is_allowed(chains: FakeChains) -> None:
    [chain] = chains.add(LAYERS[:1])
    lazy = LazyChains(chains, quiet_seconds=0)
    lazy.expect(chain, now=True)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(lazy.mount(chain), 0.05)
    assert chains.count("mount") == 0

    lazy.allow_mounts()
    await mounted(chains, chain)
    await lazy.aclose()
