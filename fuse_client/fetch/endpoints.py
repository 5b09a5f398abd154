"""The proxies of a node and their health. Pure: the caller brings the clock and does the probing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastpull.fuse_client.fetch.backoff import backoff

FAILURES_UNTIL_DOWN = 3  # one cut answer is no outage; a refused connection is


@dataclass(slots=True)
class Endpoint:
    """One proxy. It is down from ``down_since`` on, until a probe at ``probe_at`` or later succeeds."""

    url: str
    failures: int = 0  # in a row
    probes: int = 0  # failed ones since it went down
    down_since: float | None = None
    probe_at: float = 0.0
    last_error: str = ""

    @property
    def is_up(self) -> bool:
        return self.down_since is None


class Endpoints:
    """Chooses a proxy for each attempt. Order of the settings is preference.

    Requests go to proxies that are up only; one that is down comes back by a successful probe, so that
    no reader pays for finding out that it is still away.
    """

    def __init__(self, urls: Sequence[str]) -> None:
        self.all = [Endpoint(url.rstrip("/")) for url in urls]

    @property
    def urls(self) -> list[str]:
        return [endpoint.url for endpoint in self.all]

    @property
    def any_up(self) -> bool:
        return any(endpoint.is_up for endpoint in self.all)

    def pick(self, attempt: int = 0) -> Endpoint | None:
        """The proxy for this attempt at something; later attempts go round those that are up. None = all are down."""
        up = [endpoint for endpoint in self.all if endpoint.is_up]
        return up[attempt % len(up)] if up else None

    def failed(self, endpoint: Endpoint, reason: str, now: float, *, refused: bool = False) -> bool:
        """Note a failed request; true if the proxy goes down by it. ``refused``: there was not even a connection."""
        endpoint.failures += 1
        endpoint.last_error = reason
        if endpoint.is_up and (refused or endpoint.failures >= FAILURES_UNTIL_DOWN):
            endpoint.down_since = now
            endpoint.probes = 0
            endpoint.probe_at = now + backoff(1)
            return True
        return False

    def probe_failed(self, endpoint: Endpoint, reason: str, now: float) -> None:
        endpoint.last_error = reason
        endpoint.probes += 1
        endpoint.probe_at = now + backoff(endpoint.probes + 1)

    def answered(self, endpoint: Endpoint) -> bool:
        """Note a good answer; true if the proxy was down until now."""
        was_down = not endpoint.is_up
        endpoint.failures = endpoint.probes = 0
        endpoint.down_since = None
        if was_down:
            endpoint.last_error = ""
        return was_down

    def due(self, now: float) -> list[Endpoint]:
        """Proxies that are down and should be probed now."""
        return [e for e in self.all if not e.is_up and e.probe_at <= now]

    def next_probe(self) -> float | None:
        """When the next probe is due; None = nothing is down."""
        return min((e.probe_at for e in self.all if not e.is_up), default=None)

    def last_error(self) -> str:
        return next((e.last_error for e in self.all if e.last_error), "no proxy is configured")
