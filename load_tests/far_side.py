"""A registry and a proxy on the far side of a slow link: a network namespace, veth and tbf; the delay by a relay."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from harness.processes import OwnedProcess, run
from harness.proxy import Proxy
from harness.registry import Registry

RELAY = Path(__file__).with_name("delay_relay.py")
_UNITS = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}


@dataclass(frozen=True, slots=True)
class Link:
    """The link, as the near side sees it."""

    namespace: str
    interface: str  # here
    address: str  # of the far side
    rtt: float  # seconds

    def inside(self, command: Sequence[str | Path]) -> list[str]:
        """The command, to be run on the far side."""
        return ["ip", "netns", "exec", self.namespace, *map(str, command)]


def bits_per_second(text: str) -> float:
    """``1gbit`` → 1e9, as tc reads it. Raise ``ValueError``."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmg]bit)", text)
    if match is None:
        raise ValueError(f"{text!r} is no bandwidth such as 1gbit or 200mbit")
    return float(match[1]) * _UNITS[match[2]]


def seconds(text: str) -> float:
    """``1ms`` → 0.001. Raise ``ValueError``."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)ms", text)
    if match is None:
        raise ValueError(f"{text!r} is no time such as 1ms")
    return float(match[1]) / 1000


@contextlib.contextmanager
def shaped_link(bandwidth: str, rtt: float) -> Iterator[Link]:
    """Both directions are held to ``bandwidth``. Needs root; nothing is left at the end."""
    bits_per_second(bandwidth)
    number = os.getpid() % 250
    link = Link(f"fpfar{number}", f"fpn{number}", f"10.231.{number}.2", rtt)
    peer = f"fpf{number}"
    try:
        run("ip", "netns", "add", link.namespace)
        run("ip", "link", "add", link.interface, "type", "veth", "peer", "name", peer, "netns", link.namespace)
        run("ip", "addr", "add", f"10.231.{number}.1/30", "dev", link.interface)
        run("ip", "link", "set", link.interface, "up")
        run(*link.inside(["ip", "addr", "add", f"{link.address}/30", "dev", peer]))
        run(*link.inside(["ip", "link", "set", peer, "up"]))
        run(*link.inside(["ip", "link", "set", "lo", "up"]))
        # A burst of a millisecond at 1 Gbit/s, and a queue of 50 ms, as switches have.
        shape = ["root", "tbf", "rate", bandwidth, "burst", "256kb", "latency", "50ms"]
        run("tc", "qdisc", "add", "dev", link.interface, *shape)
        run(*link.inside(["tc", "qdisc", "add", "dev", peer, *shape]))
        yield link
    finally:
        run("ip", "netns", "del", link.namespace, check=False)
        run("ip", "link", "del", link.interface, check=False)


class FarRegistry(Registry):
    """Listens on the loopback over there; reached through the relay."""

    def __init__(self, root: Path, link: Link) -> None:
        self._link = link
        super().__init__(root)
        self.process = OwnedProcess(link.inside(self.process.args), root / "registry.log")
        self._relay = relay(link, root, self.port)

    @property
    def host(self) -> str:
        return f"{self._link.address}:{self.port}"

    def start(self) -> Self:
        self._relay.start()
        self.process.start().wait_until(lambda: _answers(self.url + "/v2/"), "the registry listens")
        return self

    def stop(self) -> None:
        super().stop()
        self._relay.stop()


class FarProxy(Proxy):
    """In front of the registry over there."""

    def __init__(self, root: Path, registry: Registry, link: Link) -> None:
        self._link = link
        super().__init__(root, [registry])
        self.process = OwnedProcess(link.inside(self.process.args), root / "proxy.log")
        self._relay = relay(link, root, self.port)

    @property
    def url(self) -> str:
        return f"http://{self._link.address}:{self.port}"

    def start(self) -> Self:
        self._relay.start()
        return super().start()

    def stop(self) -> None:
        super().stop()
        self._relay.stop()

    def forget_everything(self) -> None:
        """As before it has seen its first image."""
        self.stop()
        shutil.rmtree(self.root / "data", ignore_errors=True)
        self.start()


def relay(link: Link, root: Path, port: int) -> OwnedProcess:
    """Half of the round trip each way."""
    command = [sys.executable, "-I", "-S", RELAY, link.address, str(link.rtt / 2), str(port)]
    return OwnedProcess(link.inside(command), root / "relay.log")


def _answers(url: str) -> bool:
    host, _, port = url.removeprefix("http://").partition("/")[0].rpartition(":")
    with socket.socket() as probe:
        probe.settimeout(5)
        if probe.connect_ex((host, int(port))):
            return False
        probe.sendall(f"GET /v2/ HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
        return probe.recv(12).startswith(b"HTTP/1.")
