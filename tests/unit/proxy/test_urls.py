"""Whatever is no URL is a ``ValueError``, and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from fastpull.proxy.urls import parse_url


@pytest.mark.parametrize("encoded", [False, True])
@pytest.mark.parametrize("text", ["0://[]@", "https://[@host]", "//[]@/v2/"])
def test_an_authority_of_brackets_is_refused(text: str, encoded: bool) -> None:
    with pytest.raises(ValueError):
        parse_url(text, encoded=encoded)


def test_a_url_stays_as_it_is() -> None:
    assert parse_url("https://host:5000/v2/a%2Fb?x=%20", encoded=True) == URL(
        "https://host:5000/v2/a%2Fb?x=%20", encoded=True
    )


@given(st.text(alphabet="0a:/@[]?#.%\\-", max_size=24))
def test_any_text_is_a_url_or_refused(text: str) -> None:
    try:
        parse_url(text)
    except ValueError:
        return
