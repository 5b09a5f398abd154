"""``POST /v1/scrub``."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest
from fakes.api import Api

from fastpull.cache.scrub import Damage, Scrubs, ScrubState, Step
from fastpull.cache.wire import ErrorBody


class Endless:
    kind = "numbers"

    def total(self) -> int:
        return 10**9

    def steps(self) -> Iterator[Step]:
        for _ in range(10**9):
            yield Step(1000, 1)

    async def drop(self, damage: Damage) -> bool:
        raise AssertionError("nothing is damaged")


@pytest.fixture
def endless(api: Api) -> Api:
    object.__setattr__(api.services, "scrubs", Scrubs([Endless()]))
    return api


async def test_states_come_line_by_line_until_it_is_done(api: Api) -> None:
    """An empty proxy is clean at once."""
    answer = await api.client.post("/v1/scrub?rate=0")
    states = [msgspec.json.decode(line, type=ScrubState) for line in (await answer.read()).splitlines()]
    assert answer.status == 200
    assert states[-1].stage == "done"
    assert states[-1].is_clean


async def test_a_second_one_is_refused(endless: Api) -> None:
    """409; when the client of the first has left, there is room for another."""
    first = await endless.client.post("/v1/scrub?rate=1000")
    assert msgspec.json.decode(await first.content.readline(), type=ScrubState).stage == "running"
    second = await endless.client.post("/v1/scrub?rate=1000")
    assert second.status == 409
    assert "already" in msgspec.json.decode(await second.read(), type=ErrorBody).error

    first.close()
    while (third := await endless.client.post("/v1/scrub?rate=1000")).status == 409:
        await third.read()
    assert third.status == 200
    third.close()


async def test_a_rate_that_is_none_is_refused(api: Api) -> None:
    answer = await api.client.post("/v1/scrub?rate=fast")
    assert answer.status == 400
    assert "fast" in msgspec.json.decode(await answer.read(), type=ErrorBody).error
