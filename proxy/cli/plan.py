"""``fastpull-proxy plan``: look at, keep, restore or drop what has been learned about an image."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from fastpull.cache.wire import ImageInfo, Plan
from fastpull.proxy.api.messages import PlanChange
from fastpull.proxy.cli.amounts import short
from fastpull.proxy.cli.connection import ProxyConnection
from fastpull.proxy.cli.errors import CommandError
from fastpull.proxy.cli.status import write_json


def show(proxy: ProxyConnection, image: str, platform: str, *, as_json: bool) -> int:
    plan = _fetch(proxy, image, platform)
    if as_json:
        write_json(plan)
        return 0
    source = f"inherited from {short(plan.inherited_from)}" if plan.inherited_from else f"from {plan.starts} starts"
    sys.stdout.write(f"{image}: {len(plan.chunks)} chunks, {source}\n" if plan.chunks else f"{image}: no plan yet\n")
    return 0


def export(proxy: ProxyConnection, image: str, platform: str, file: Path | None) -> int:
    """Write the plan as JSON, to ``file`` or standard output."""
    text = msgspec.json.format(msgspec.json.encode(_fetch(proxy, image, platform))).decode() + "\n"
    if file is None:
        sys.stdout.write(text)
        return 0
    try:
        file.write_text(text)
    except OSError as exc:
        raise CommandError(f"can not write {file}: {exc.strerror}", "name another file") from exc
    return 0


def import_(proxy: ProxyConnection, image: str, platform: str, file: Path | None) -> int:
    """Replace the image's plan by one that was exported, perhaps from another tag."""
    try:
        body = file.read_bytes() if file is not None else sys.stdin.buffer.read()
    except OSError as exc:
        raise CommandError(f"can not read {file}: {exc.strerror}", "name a file that `plan export` wrote") from exc
    try:
        msgspec.json.decode(body, type=Plan)
    except msgspec.DecodeError as exc:
        raise CommandError(f"{file or 'standard input'} holds no plan: {exc}", "use what `plan export` wrote") from exc
    change = proxy.put(f"/v1/chains/{_chain(proxy, image, platform)}/plan", body, PlanChange)
    note = f", {change.dropped} left out because this image does not hold them" if change.dropped else ""
    sys.stdout.write(f"{image}: plan of {change.chunks} chunks kept{note}\n")
    return 0


def drop(proxy: ProxyConnection, image: str, platform: str) -> int:
    change = proxy.delete(f"/v1/chains/{_chain(proxy, image, platform)}/plan", PlanChange)
    sys.stdout.write(f"{image}: plan of {change.dropped} chunks dropped\n")
    return 0


def _fetch(proxy: ProxyConnection, image: str, platform: str) -> Plan:
    return proxy.get(f"/v1/chains/{_chain(proxy, image, platform)}/plan", Plan)


def _chain(proxy: ProxyConnection, image: str, platform: str) -> str:
    query = {"ref": image, "platform": platform} if platform else {"ref": image}
    return proxy.get("/v1/images", ImageInfo, **query).chain_id
