"""What nobody has asked for in a long time goes, in an order that leaves nothing built from what is gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from fakes.api import Api, serve_api
from fakes.ingest_parts import add_image, chunk_of, diff_id_of, layer_blob

from fastpull.cache.tables import Database
from fastpull.cache.wire import Plan
from fastpull.proxy.age_out import AgeOut
from fastpull.proxy.ageing import Aged, Kept, aged, chains_in_use
from fastpull.proxy.chain_uses import TABLES, ChainUses
from fastpull.proxy.ingest.state import ImageRecord

DAY = 86400.0
LIMIT = 30 * DAY
LOW, HIGH, OTHER = (layer_blob((f"bin/{name}", name.encode() * 5000)) for name in "abc")
LOW_ID, HIGH_ID, OTHER_ID = map(diff_id_of, (LOW, HIGH, OTHER))

# Of the pure decision: "base" is beneath "app"; "old" shares its layer.
LINKS = {"base": ("", "l1"), "app": ("base", "l2"), "old": ("base", "l3")}


def prefixes(chain: str) -> Sequence[str]:
    return [chain, *prefixes(LINKS[chain][0])] if chain in LINKS else []


def diff_ids(chain: str) -> Sequence[str]:
    return [LINKS[prefix][1] for prefix in prefixes(chain)]


KEPT = Kept(plans=["app", "old"], chains=["base", "app", "old"], indexes=["l1", "l2", "l3"])


def image(chain: str, *, seen_at: float = 0.0, warmed: bool = False) -> ImageRecord:
    return ImageRecord(
        manifest_digest=chain, upstream="", repository="", names=(), platform="", config=b"", diff_ids=(),
        layer_digests=(), blob_bytes=0, chain_id=chain, seen_at=seen_at, warmed=warmed,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("in_use", "expected"),
    [
        pytest.param({"app", "old"}, Aged(), id="all-in-use"),
        pytest.param({"app"}, Aged(("old",), ("old",), ("l3",)), id="what-a-chain-in-use-stands-on-stays"),
        pytest.param({"base"}, Aged(("app", "old"), ("app", "old"), ("l2", "l3")), id="not-what-stands-on-it"),
        pytest.param(set(), Aged(("app", "old"), ("app", "base", "old"), ("l1", "l2", "l3")), id="none-in-use"),
    ],
)
def test_what_no_chain_in_use_needs_goes(in_use: set[str], expected: Aged) -> None:
    assert aged(KEPT, in_use, prefixes, diff_ids, 100) == expected


def test_a_round_is_bounded_and_takes_no_index_before_the_chains() -> None:
    assert aged(KEPT, (), prefixes, diff_ids, 1) == Aged(("app",))
    assert aged(KEPT, (), prefixes, diff_ids, 4) == Aged(("app", "old"), ("app", "base"))
    assert aged(KEPT, (), prefixes, diff_ids, 6) == Aged(("app", "old"), ("app", "base", "old"), ("l1",))


def test_asked_for_pulled_or_warmed_is_in_use() -> None:
    images = [image("pulled", seen_at=100), image("old", seen_at=99), image("warmed", warmed=True), image("")]

    assert chains_in_use(images, {"asked": 100, "old": 99.0}, since=100) == {"asked", "pulled", "warmed"}


def test_uses_survive_a_restart_and_are_written_once_an_hour(tmp_path: Path) -> None:
    now = [1000.0]
    database = Database.open(tmp_path, tables=TABLES, map_bytes=1 << 20)
    uses = ChainUses(database, lambda: now[0])
    uses.note("a")
    uses.write(uses.last())
    now[0] = 1500.0
    uses.note("a")
    uses.write(uses.last())
    assert ChainUses(database).last() == {"a": 1000.0}, "half an hour is not worth a write"
    now[0] = 9000.0
    uses.note("a")
    uses.note("b")
    uses.write(uses.last())
    assert ChainUses(database).last() == {"a": 9000.0, "b": 9000.0}
    assert ChainUses(database).recorded_since == 1000.0

    uses.forget(["a", "b"], before=9000.0)
    assert uses.has("a")
    uses.forget(["a"], before=9000.5)
    uses.write(uses.last())
    assert ChainUses(database).last() == {"b": 9000.0}
    database.close()


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with serve_api(tmp_path) as served:
        yield served


def age_out(api: Api, unused_seconds: float = LIMIT) -> AgeOut:
    services = api.services
    return AgeOut(
        services.uses, api.parts.tables, services.ingest, services.plans, api.writer,
        unused_seconds=unused_seconds, clock=api.parts.clock,
    )  # fmt: skip


async def prepared(api: Api, layers: Sequence[bytes], tag: str) -> str:
    """An image that has passed by, is built and has a plan; its chain."""
    record = await api.parts.images.learn("registry.test", "app", add_image(api.parts.mirror, layers, tag))
    assert record is not None
    await api.parts.ingest.prepare(record.chain_id)
    await api.services.plans.put(record.chain_id, Plan(chain_id=record.chain_id, chunks=(chunk_of(b"a" * 5000).hex(),)))
    return record.chain_id


async def test_what_is_not_asked_for_goes_and_comes_back_when_it_is(api: Api) -> None:
    """Through the tables and the routes: an aged index leads to another ingest, and the same bootstrap."""
    asked, idle = await prepared(api, [LOW, HIGH], "1"), await prepared(api, [LOW, OTHER], "2")
    house, tables = age_out(api), api.parts.tables
    before = tables.built.get(idle)
    api.parts.clock.now += LIMIT - DAY
    assert (await api.client.get(f"/v1/chains/{asked}")).status == 200
    assert not await house.round()

    api.parts.clock.now += 2 * DAY
    assert await house.round() == Aged((idle,), (idle,), (OTHER_ID,))
    assert not await house.round()
    assert sorted(tables.indexes.keys()) == sorted([LOW_ID, HIGH_ID])
    assert [tables.artifacts.has(f"{chain}/bootstrap") for chain in (asked, idle)] == [True, False]

    jobs = len(api.parts.pool.jobs)
    assert (await api.client.get(f"/v1/chains/{idle}/bootstrap")).status == 200
    assert [str(job.diff_id) for job in api.parts.pool.jobs[jobs:]] == [OTHER_ID]
    assert tables.built.get(idle) == before
    assert not await house.round(), "asked for just now"


async def test_a_running_node_gets_its_chunks_after_the_indexes_have_gone(api: Api) -> None:
    chain = await prepared(api, [LOW], "1")
    api.parts.clock.now += LIMIT + DAY
    assert len(await age_out(api).round()) == 3
    chunk = chunk_of(b"a" * 5000)
    api.parts.store.drop([chunk])

    answer = await api.client.post(f"/v1/chunks?chain={chain}", data=bytes(chunk))

    assert len(await answer.read()) > 0
    assert api.parts.store.has([chunk]) == [True]


async def test_one_question_brings_all_layers_back_that_may_hold_a_chunk(api: Api) -> None:
    """With all indexes gone nobody knows which one it is."""
    chain = await prepared(api, [LOW, HIGH, OTHER], "1")
    api.parts.clock.now += LIMIT + DAY
    assert len(await age_out(api).round()) == 5
    chunk = chunk_of(b"a" * 5000)
    api.parts.store.drop([chunk])

    await (await api.client.post(f"/v1/chunks?chain={chain}", data=bytes(chunk))).read()

    assert api.parts.store.has([chunk]) == [True]


async def test_a_warmed_image_stays_and_zero_keeps_everything(api: Api) -> None:
    chain = await prepared(api, [LOW], "1")
    api.parts.clock.now += 10 * LIMIT
    assert not await age_out(api, unused_seconds=0).round()
    (record,) = await asyncio.to_thread(api.parts.images.known)
    await api.parts.images.mark_warmed(record)
    assert not await age_out(api).round()
    assert api.parts.chains.built(chain) is not None


async def test_what_an_earlier_version_left_counts_as_used_when_recording_began(api: Api) -> None:
    """An upgrade throws nothing away that may be in use on nodes."""
    await prepared(api, [LOW], "1")
    api.parts.clock.now += 10 * LIMIT
    api.services.uses.recorded_since = api.parts.clock.now

    assert not await age_out(api).round()
    api.parts.clock.now += LIMIT + DAY
    assert len(await age_out(api).round()) == 3


async def test_names_that_nobody_knows_are_not_remembered(api: Api) -> None:
    await api.client.get("/v1/chains/sha256:" + "0" * 64)

    assert api.services.uses.last() == {}
