"""``/v1/chains/{chainID}/plan`` and ``/v1/traces``: what starts need, learned and looked up."""

from __future__ import annotations

from aiohttp import web

from fastpull.cache.digest import Digest
from fastpull.cache.wire import Plan, Trace
from fastpull.proxy.api.errors import RequestError
from fastpull.proxy.api.messages import PlanChange
from fastpull.proxy.api.messaging import chain_of, read_message, reply
from fastpull.proxy.services import SERVICES

ROUTES = web.RouteTableDef()

MAX_CHUNKS = 200_000  # of a plan or trace: 12 GiB of chunks, more than any start reads


@ROUTES.get("/v1/chains/{chain}/plan")
async def get_plan(request: web.Request) -> web.StreamResponse:
    """``Plan``: learned, or inherited from a similar chain; without chunks where there is neither."""
    return reply(await request.app[SERVICES].plans.get(chain_of(request)))


@ROUTES.put("/v1/chains/{chain}/plan")
async def put_plan(request: web.Request) -> web.StreamResponse:
    """Replace the plan by one from elsewhere; what the chain does not hold is left out: ``PlanChange``."""
    services = request.app[SERVICES]
    chain = chain_of(request)
    plan = await read_message(request, Plan)
    _check_count(len(plan.chunks))
    kept = await services.plans.put(chain, plan)
    return reply(PlanChange(chain_id=chain, chunks=len(kept.chunks), dropped=len(plan.chunks) - len(kept.chunks)))


@ROUTES.delete("/v1/chains/{chain}/plan")
async def delete_plan(request: web.Request) -> web.StreamResponse:
    chain = chain_of(request)
    return reply(PlanChange(chain_id=chain, dropped=await request.app[SERVICES].plans.drop(chain)))


@ROUTES.post("/v1/traces")
async def post_trace(request: web.Request) -> web.StreamResponse:
    """``Trace`` → the chain's new ``PlanChange``. Traces of chains that are not known here are refused with 404."""
    services = request.app[SERVICES]
    trace = await read_message(request, Trace)
    chain = str(Digest.parse(trace.chain_id))
    _check_count(len(trace.chunks))
    plan = await services.plans.learn(trace)
    return reply(PlanChange(chain_id=chain, chunks=len(plan.chunks)))


def _check_count(chunks: int) -> None:
    if chunks > MAX_CHUNKS:
        raise RequestError(f"{chunks} chunks; at most {MAX_CHUNKS} are accepted", status=413)
