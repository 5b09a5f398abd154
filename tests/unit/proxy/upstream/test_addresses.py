"""Which addresses may be reached."""

import socket

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from fastpull.proxy.errors import UpstreamForbiddenError
from fastpull.proxy.upstream.addresses import AddressPolicy, GuardedResolver, is_public


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
     "255.255.255.255", "::1", "::", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "::ffff:10.0.0.1",
     "::ffff:169.254.169.254", "64:ff9b::a00:1", "2002:a00:1::", "ff02::1", "nonsense", ""],
)  # fmt: skip
def test_private_addresses(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_public_addresses(address: str) -> None:
    assert is_public(address)


class Names(AbstractResolver):
    """Resolves to what the test says; a rebinding server gives another answer each time."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [
            ResolveResult(hostname=host, host=address, port=port, family=socket.AF_INET, proto=0, flags=0)
            for address in self.answers.pop(0)
        ]

    async def close(self) -> None:
        return None


async def test_only_public_addresses_of_a_strange_name_are_returned() -> None:
    """Whatever the name resolves to later, connections go to what was checked."""
    resolver = GuardedResolver(
        AddressPolicy({"registry.home"}), Names(["8.8.8.8", "10.0.0.1"], ["10.0.0.1"], ["10.0.0.1"])
    )

    assert [result["host"] for result in await resolver.resolve("evil.example", 443)] == ["8.8.8.8"]
    with pytest.raises(UpstreamForbiddenError):
        await resolver.resolve("evil.example", 443)
    assert [result["host"] for result in await resolver.resolve("registry.home", 443)] == ["10.0.0.1"]


def test_literal_addresses_are_checked_before_they_are_connected_to() -> None:
    policy = AddressPolicy({"10.0.0.1"})
    policy.check_url(URL("http://10.0.0.1:5000/"))
    policy.check_url(URL("https://8.8.8.8/"))
    policy.check_url(URL("https://name.example/"))
    for url in ("http://10.0.0.2/", "http://[::1]/", "http://169.254.169.254/latest/meta-data/"):
        with pytest.raises(UpstreamForbiddenError):
            policy.check_url(URL(url))
    AddressPolicy((), allow_private=True).check_url(URL("http://10.0.0.2/"))
