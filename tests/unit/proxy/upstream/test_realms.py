"""Where a bearer realm may point."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from fastpull.proxy.errors import UpstreamForbiddenError
from fastpull.proxy.upstream.realms import check_realm, registrable_domain


@pytest.mark.parametrize(
    ("upstream", "realm", "token_hosts"),
    [
        ("https://ghcr.io", "https://ghcr.io/token", ()),
        ("https://registry-1.docker.io", "https://auth.docker.io/token", ()),
        ("https://nvcr.io", "https://authn.nvidia.com/token", ("authn.nvidia.com",)),
        ("https://quay.io", "https://quay.io/v2/auth?account=x", ()),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5001/token", ()),
        ("http://registry.local:5000", "https://registry.local/token", ()),
        ("https://registry.corp.example", "https://sso.corp.example/token", ()),
        ("https://r.example", "https://auth.other.example:8443/t", ("auth.other.example:8443",)),
    ],
)
def test_a_realm_near_by_is_taken(upstream: str, realm: str, token_hosts: tuple[str, ...]) -> None:
    assert str(check_realm(realm, URL(upstream), token_hosts)) == realm


@pytest.mark.parametrize(
    ("upstream", "realm"),
    [
        ("https://ghcr.io", "https://evil.example/token"),
        ("https://ghcr.io", "http://ghcr.io/token"),
        ("https://ghcr.io", "https://ghcr.io.evil.example/token"),
        ("https://ghcr.io", "https://evil-ghcr.io/token"),
        ("https://ghcr.io", "https://user:pw@ghcr.io/token"),
        ("https://ghcr.io", "ftp://ghcr.io/token"),
        ("https://ghcr.io", "//ghcr.io/token"),
        ("https://ghcr.io", "/token"),
        ("https://ghcr.io", ""),
        ("https://ghcr.io", "https://"),
        ("https://ghcr.io", "https://ghcr.io:port/token"),
        ("https://ghcr.io", "https://[ghcr.io/token"),
        ("https://10.0.0.1", "https://10.0.0.2/token"),
        ("https://a.co.uk", "https://b.co.uk/token"),
        ("https://a.azurecr.io", "https://b.azurecr.io/token"),
        ("https://me.github.io", "https://you.github.io/token"),
        ("https://1.dkr.ecr.eu-west-1.amazonaws.com", "https://bucket.s3.amazonaws.com/token"),
        ("https://localhost", "https://com/token"),
    ],
)
def test_a_strange_realm_is_refused(upstream: str, realm: str) -> None:
    with pytest.raises(UpstreamForbiddenError):
        check_realm(realm, URL(upstream), ())


@given(st.text(max_size=100) | st.from_regex(r"\Ahttps?://[a-z.@:\[\]/]{0,40}\Z"))
def test_any_text_is_near_or_refused(realm: str) -> None:
    try:
        url = check_realm(realm, URL("https://registry.example.org"), ())
    except UpstreamForbiddenError:
        return
    assert url.scheme == "https"
    assert registrable_domain(url.host or "") == "example.org"
