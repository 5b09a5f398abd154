"""Images, warming, plans, purging, status and health over HTTP."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from fakes.api import Api
from fakes.ingest_parts import add_image, chunk_of, diff_id_of, layer_blob

from fastpull.cache.digest import Digest
from fastpull.cache.wire import ErrorBody, ImageInfo, Plan, Trace, WarmRequest, WarmState
from fastpull.proxy.api.messages import ImageList, PlanChange, Purged, StatusReport
from fastpull.proxy.cli.status import status_lines
from fastpull.proxy.mirror.blobs import BlobSource, FillProgress

A, B, C = b"1" * 5000, b"2" * 7000, b"3" * 9000
LOW, HIGH, OTHER = layer_blob(("bin/a", A)), layer_blob(("bin/b", B)), layer_blob(("bin/c", C))
NAME = "registry.test/app:1"


async def ask(api: Api, method: str, path: str, kind: Any, *, status: int = 200, body: bytes | None = None) -> Any:
    answer = await api.client.request(method, path, data=body)
    data = await answer.read()
    assert answer.status == status, data
    return msgspec.json.decode(data, type=kind)


async def warm(api: Api, name: str = NAME) -> WarmState:
    body = msgspec.json.encode(WarmRequest(image=name))
    answer = await api.client.post("/v1/warm", data=body)
    state = msgspec.json.decode(await answer.read(), type=WarmState)
    return await ask(api, "GET", f"/v1/warm/{state.id}?wait=30", WarmState)


async def test_an_image_is_warmed_and_listed(api: Api) -> None:
    add_image(api.parts.mirror, [LOW, HIGH])

    state = await warm(api)

    assert state.stage == "done"
    listed = await ask(api, "GET", "/v1/images", ImageList)
    assert [(image.names, image.state, image.warmed) for image in listed.images] == [((NAME,), "ready", True)]


async def test_a_name_is_resolved_with_its_config_verbatim(api: Api) -> None:
    add_image(api.parts.mirror, [LOW])

    info = await ask(api, "GET", f"/v1/images?ref={NAME}&platform=linux/amd64", ImageInfo)

    assert info.image == NAME
    assert info.chain_id == diff_id_of(LOW)
    assert b'"architecture": "amd64"' in bytes(info.config)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/images?ref=registry.test/none:1", 404),
        ("/v1/images?ref=UPPER", 400),
        (f"/v1/images?ref={NAME}&platform=windows", 400),
        (f"/v1/images?ref={NAME}&platform=linux/s390x", 422),
        ("/v1/warm/none", 404),
    ],
)
async def test_what_is_not_there_is_told(api: Api, path: str, status: int) -> None:
    add_image(api.parts.mirror, [LOW])

    assert (await ask(api, "GET", path, ErrorBody, status=status)).error


@pytest.mark.parametrize("body", [b"", b"{}", b'{"image": ""}', b'{"image": "UPPER"}', b'{"image": 1}', b"\xff"])
async def test_a_wrong_warm_request_is_400(api: Api, body: bytes) -> None:
    assert (await ask(api, "POST", "/v1/warm", ErrorBody, status=400, body=body)).error


async def test_purging_an_image_keeps_what_others_need(api: Api) -> None:
    add_image(api.parts.mirror, [LOW, HIGH], "1")
    add_image(api.parts.mirror, [LOW, OTHER], "2")
    await warm(api)
    await warm(api, "registry.test/app:2")

    gone = await ask(api, "DELETE", f"/v1/images?ref={NAME}", Purged)

    assert (gone.images, gone.layers) == (1, 1)
    assert gone.chunk_bytes > 0
    assert api.parts.store.has([chunk_of(A), chunk_of(B), chunk_of(C)]) == [True, False, True]
    assert api.parts.mirror.dropped == [str(Digest.of(HIGH))]
    assert (await warm(api, "registry.test/app:2")).stage == "done"
    assert len(api.parts.pool.jobs) == 3


async def test_a_purged_image_can_be_warmed_again(api: Api) -> None:
    add_image(api.parts.mirror, [LOW, HIGH])
    await warm(api)
    await ask(api, "DELETE", f"/v1/images?ref={NAME}", Purged)

    state = await warm(api)

    assert state.stage == "done"
    assert sum(layer.new_bytes for layer in state.layers) == 12000


async def test_purging_a_tag_only_forgets_where_it_points(api: Api) -> None:
    add_image(api.parts.mirror, [LOW])
    await warm(api)

    gone = await ask(api, "DELETE", f"/v1/tags?ref={NAME}", Purged)

    assert gone.tags == 1
    assert api.parts.mirror.purged == ["registry.test/app 1"]
    assert api.parts.images.count() == 1


@pytest.mark.parametrize("path", ["/v1/images", "/v1/tags"])
async def test_purging_what_is_not_known_is_404(api: Api, path: str) -> None:
    assert (await ask(api, "DELETE", f"{path}?ref=registry.test/none", ErrorBody, status=404)).error
    assert (await ask(api, "DELETE", path, ErrorBody, status=400)).error


async def test_traces_become_a_plan_that_can_be_moved_and_dropped(api: Api) -> None:
    add_image(api.parts.mirror, [LOW, HIGH])
    chain = (await warm(api)).chain_id
    chunks = (chunk_of(B).hex(), chunk_of(A).hex())
    trace = Trace(chain_id=chain, node="n1", chunks=(*chunks, chunk_of(b"foreign").hex(), "zz"), at_ms=(1, 2, 3, 4))

    await ask(api, "POST", "/v1/traces", PlanChange, body=msgspec.json.encode(trace))
    plan = await ask(api, "GET", f"/v1/chains/{chain}/plan", Plan)
    assert plan.chunks == chunks
    assert plan.starts == 1

    assert (await ask(api, "DELETE", f"/v1/chains/{chain}/plan", PlanChange)).dropped == 2
    assert (await ask(api, "GET", f"/v1/chains/{chain}/plan", Plan)).chunks == ()
    change = await ask(api, "PUT", f"/v1/chains/{chain}/plan", PlanChange, body=msgspec.json.encode(plan))
    assert (change.chunks, change.dropped) == (2, 0)
    assert (await ask(api, "GET", f"/v1/chains/{chain}/plan", Plan)).chunks == chunks


async def test_a_trace_of_a_foreign_chain_is_refused(api: Api) -> None:
    trace = msgspec.json.encode(Trace(chain_id="sha256:" + "0" * 64))

    assert (await ask(api, "POST", "/v1/traces", ErrorBody, status=404, body=trace)).error
    assert (await ask(api, "POST", "/v1/traces", ErrorBody, status=400, body=b'{"chain_id": "x"}')).error


async def test_a_trace_beyond_all_measure_is_refused(api: Api) -> None:
    trace = msgspec.json.encode(Trace(chain_id="sha256:" + "0" * 64, chunks=("00",) * 200_001))

    assert (await ask(api, "POST", "/v1/traces", ErrorBody, status=413, body=trace)).error


async def test_the_status_tells_stores_and_work(api: Api) -> None:
    add_image(api.parts.mirror, [LOW, HIGH])
    await warm(api)

    report = await ask(api, "GET", "/v1/status", StatusReport)

    assert report.ready
    assert report.images == 1
    assert report.chunks.entries == 2
    assert report.chunks.quota_bytes == 64 << 20


async def test_the_status_tells_which_blobs_are_on_their_way(api: Api) -> None:
    """With what a person asks about a slow pull: how far, for how many, since when."""
    digest = Digest.of(b"blob")
    api.parts.mirror.running.append(FillProgress(BlobSource("r.test", "team/app", digest), 512, 2048, 3, 1.5))
    api.parts.mirror.running.append(FillProgress(BlobSource("r.test", "team/app", Digest.of(b"")), 0, None, 1, 0.0))

    report = await ask(api, "GET", "/v1/status", StatusReport)

    fill = report.fills[0]
    assert (fill.digest, fill.upstream, fill.repository) == (str(digest), "r.test", "team/app")
    assert (fill.bytes, fill.size, fill.readers) == (512, 2048, 3)
    lines = status_lines(report, "http://p")
    assert f"filling:    {digest.hex[:12]} 512 B of 2.0 KiB, 3 readers, 1.50 s, from r.test/team/app" in lines
    assert any("0 B of ?, 1 reader," in line for line in lines)


async def test_answers_are_counted_by_route_and_status(api: Api) -> None:
    """Whatever stands in the path, the label is the route; an unknown path has none."""

    async def counted() -> dict[str, float]:
        lines = (await (await api.client.get("/metrics")).text()).splitlines()
        rows = [line.rpartition(" ") for line in lines if line.startswith("fastpull_proxy_api_requests_total")]
        return {name: float(value) for name, _, value in rows}

    before = await counted()
    await api.client.get("/v1/status")
    await api.client.get(f"/v1/chains/sha256:{'0' * 64}")
    await api.client.get("/v1/nothing/here")

    after = await counted()
    grown = sorted(name.partition("{")[2] for name in after if after[name] > before.get(name, 0))
    assert grown == [
        'route="/v1/chains/{chain}",status="200"}',
        'route="/v1/status",status="200"}',
        'route="none",status="404"}',
    ]


async def test_health_readiness_and_metrics(api: Api) -> None:
    assert (await api.client.get("/healthz")).status == 200
    assert (await api.client.get("/readyz")).status == 200
    metrics = await (await api.client.get("/metrics")).text()
    assert "fastpull_proxy_chunks_sent_total" in metrics

    def full() -> None:
        raise OSError("no space left on device")

    await api.services.health.check(full)

    unready = await api.client.get("/readyz")
    assert unready.status == 503
    assert "no space left" in await unready.text()
    assert (await api.client.get("/healthz")).status == 200


async def test_the_next_tag_inherits_what_was_learned_of_the_last(api: Api) -> None:
    add_image(api.parts.mirror, [LOW, HIGH], "1")
    add_image(api.parts.mirror, [OTHER, HIGH], "2")
    first = (await warm(api)).chain_id
    second = (await warm(api, "registry.test/app:2")).chain_id
    trace = Trace(chain_id=first, chunks=(chunk_of(B).hex(), chunk_of(A).hex()))
    await ask(api, "POST", "/v1/traces", PlanChange, body=msgspec.json.encode(trace))

    plan = await ask(api, "GET", f"/v1/chains/{second}/plan", Plan)

    assert plan.chunks == (chunk_of(B).hex(),)
    assert plan.inherited_from == first


async def test_starts_at_the_same_time_are_all_counted(api: Api) -> None:
    add_image(api.parts.mirror, [LOW, HIGH])
    chain = (await warm(api)).chain_id
    trace = msgspec.json.encode(Trace(chain_id=chain, chunks=(chunk_of(A).hex(),)))

    await asyncio.gather(*(ask(api, "POST", "/v1/traces", PlanChange, body=trace) for _ in range(10)))

    assert (await ask(api, "GET", f"/v1/chains/{chain}/plan", Plan)).starts == 10


async def test_a_plan_of_an_unknown_chain_is_empty(api: Api) -> None:
    assert (await ask(api, "GET", f"/v1/chains/sha256:{'0' * 64}/plan", Plan)).chunks == ()
