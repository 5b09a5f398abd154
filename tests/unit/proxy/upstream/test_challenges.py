"""WWW-Authenticate headers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastpull.proxy.upstream.challenges import Challenge, parse_challenges

HUB = 'Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/debian:pull"'


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (
            [HUB],
            [
                Challenge(
                    "bearer",
                    {
                        "realm": "https://auth.docker.io/token",
                        "service": "registry.docker.io",
                        "scope": "repository:library/debian:pull",
                    },
                )
            ],
        ),
        (['Bearer realm="x",scope="a:b:pull,push"'], [Challenge("bearer", {"realm": "x", "scope": "a:b:pull,push"})]),
        (['Bearer realm="a \\"b\\" \\\\c"'], [Challenge("bearer", {"realm": 'a "b" \\c'})]),
        (["Basic realm=plain"], [Challenge("basic", {"realm": "plain"})]),
        (["Basic"], [Challenge("basic")]),
        (["Basic, Bearer realm=x"], [Challenge("basic"), Challenge("bearer", {"realm": "x"})]),
        (['Basic realm="a", Bearer realm="b",service="c"'],
         [Challenge("basic", {"realm": "a"}), Challenge("bearer", {"realm": "b", "service": "c"})]),
        (["Negotiate dG9r==, Basic realm=x"], [Challenge("negotiate"), Challenge("basic", {"realm": "x"})]),
        (["Basic realm=x", 'Bearer realm="y"'],
         [Challenge("basic", {"realm": "x"}), Challenge("bearer", {"realm": "y"})]),
        (['BEARER REALM = "x" , Service = y'], [Challenge("bearer", {"realm": "x", "service": "y"})]),
        (['Bearer realm="x", realm="evil"'], [Challenge("bearer", {"realm": "x"})]),
        (['Bearer realm="unterminated'], [Challenge("bearer")]),
        ([""], []),
        (["="], []),
        ([",,, ,"], []),
    ],
)  # fmt: skip
def test_challenges_are_read(headers: list[str], expected: list[Challenge]) -> None:
    assert parse_challenges(headers) == expected


@given(st.lists(st.text(max_size=200), max_size=4))
def test_any_header_is_read_without_failing(headers: list[str]) -> None:
    for challenge in parse_challenges(headers):
        assert challenge.scheme == challenge.scheme.lower()


@given(
    st.dictionaries(st.from_regex(r"\A[a-z]{1,8}\Z"), st.text(st.characters(codec="ascii"), max_size=30), min_size=1)
)
def test_quoted_values_come_back(parameters: dict[str, str]) -> None:
    quoted = ((name, value.replace("\\", "\\\\").replace('"', '\\"')) for name, value in parameters.items())
    header = "Bearer " + ",".join(f'{name}="{value}"' for name, value in quoted)
    assert parse_challenges([header]) == [Challenge("bearer", parameters)]
