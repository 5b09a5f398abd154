"""Names of images and platforms."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastpull.cache.digest import Digest
from fastpull.proxy.errors import MalformedNameError
from fastpull.proxy.references import (
    ImageReference,
    Platform,
    choose_platform,
    parse_image,
    parse_manifest_reference,
    runnable_on,
)

HEX = "0123456789abcdef" * 4
DIGEST = Digest(HEX)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("debian", ("docker.io", "library/debian", "latest", None)),
        ("debian:12", ("docker.io", "library/debian", "12", None)),
        ("org/app", ("docker.io", "org/app", "latest", None)),
        ("docker.io/debian", ("docker.io", "library/debian", "latest", None)),
        ("index.docker.io/library/debian", ("docker.io", "library/debian", "latest", None)),
        ("registry-1.docker.io/org/app", ("docker.io", "org/app", "latest", None)),
        ("ghcr.io/org/app:v1", ("ghcr.io", "org/app", "v1", None)),
        ("GHCR.io/org/app:v1", ("ghcr.io", "org/app", "v1", None)),
        ("localhost/app", ("localhost", "app", "latest", None)),
        ("localhost:5000/app:x", ("localhost:5000", "app", "x", None)),
        ("127.0.0.1:5000/a/b/c", ("127.0.0.1:5000", "a/b/c", "latest", None)),
        ("[::1]:5000/app", ("[::1]:5000", "app", "latest", None)),
        (f"debian@sha256:{HEX}", ("docker.io", "library/debian", None, DIGEST)),
        (f"ghcr.io/a/b:v1@sha256:{HEX}", ("ghcr.io", "a/b", "v1", DIGEST)),
        ("  debian\n", ("docker.io", "library/debian", "latest", None)),
        ("a/b__c/d.e-f--g", ("docker.io", "a/b__c/d.e-f--g", "latest", None)),
    ],
)
def test_an_image_is_named_as_docker_names_it(text: str, expected: tuple[str, str, str | None, Digest | None]) -> None:
    assert parse_image(text) == ImageReference(*expected)


@pytest.mark.parametrize(
    "text",
    ["", ":", "@", "/", "a//b", "a/", "/a", "A", "ghcr.io/A", "a:", "a:-x", f"a:{'x' * 129}", "a@sha256:00", "a@md5:00",
     "../etc", "a/../b", "ghcr.io/../x", "a b", "a:b:c", "ghcr.io:99999999/a", "http://ghcr.io/a", "a" * 300, "a\0b"],
)  # fmt: skip
def test_what_is_no_image_is_refused(text: str) -> None:
    with pytest.raises(MalformedNameError):
        parse_image(text)


@given(st.text(max_size=300))
def test_any_text_is_an_image_or_refused(text: str) -> None:
    """And what is one, is the same when written out and read again."""
    try:
        image = parse_image(text)
    except MalformedNameError:
        return
    assert parse_image(str(image)) == image


@given(st.from_regex(r"\A[a-z0-9.:/@_A-Z-]{1,120}\Z"))
def test_text_that_looks_like_an_image(text: str) -> None:
    test_any_text_is_an_image_or_refused.hypothesis.inner_test(text)  # type: ignore[attr-defined]


@given(st.text(max_size=200))
def test_a_manifest_reference_is_a_tag_a_digest_or_refused(text: str) -> None:
    try:
        reference = parse_manifest_reference(text)
    except MalformedNameError:
        return
    assert str(reference) == text
    assert "/" not in text


def test_a_digest_is_never_taken_for_a_tag() -> None:
    assert parse_manifest_reference(f"sha256:{HEX}") == DIGEST
    assert parse_manifest_reference(f"sha256-{HEX}") == f"sha256-{HEX}"  # the tag schema of referrers
    with pytest.raises(MalformedNameError):
        parse_manifest_reference("sha512:" + "0" * 128)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("linux/amd64", "linux/amd64"),
        ("Linux/x86_64", "linux/amd64"),
        ("linux/amd64/v1", "linux/amd64"),
        ("linux/amd64/v3", "linux/amd64/v3"),
        ("linux/aarch64", "linux/arm64"),
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/arm64/8", "linux/arm64"),
        ("linux/arm", "linux/arm/v7"),
        ("linux/armel", "linux/arm/v6"),
        ("macos/arm64", "darwin/arm64"),
    ],
)
def test_a_platform_is_normalised_as_containerd_does(text: str, expected: str) -> None:
    assert str(Platform.parse(text)) == expected


@given(st.text(max_size=60))
def test_any_text_is_a_platform_or_refused(text: str) -> None:
    try:
        platform = Platform.parse(text)
    except MalformedNameError:
        return
    assert next(runnable_on(platform)) == platform.normalised()


@pytest.mark.parametrize(
    ("wanted", "offered", "chosen"),
    [
        ("linux/amd64", ["linux/arm64", "linux/amd64"], 1),
        ("linux/amd64", ["linux/386", "linux/amd64"], 1),
        ("linux/amd64", ["linux/386"], 0),
        ("linux/amd64", ["linux/amd64/v2"], None),
        ("linux/amd64/v3", ["linux/amd64", "linux/amd64/v2"], 1),
        ("linux/arm64", ["linux/arm/v7", "linux/arm64/v8"], 1),
        ("linux/arm64", ["linux/arm/v6", "linux/arm/v7"], 1),
        ("linux/arm/v7", ["linux/arm/v5", "linux/arm/v6"], 1),
        ("linux/arm/v6", ["linux/arm/v7"], None),
        ("linux/arm64", ["windows/arm64"], None),
        ("linux/riscv64", ["linux/riscv64"], 0),
        ("linux/amd64", [], None),
    ],
)
def test_the_best_platform_is_chosen(wanted: str, offered: list[str], chosen: int | None) -> None:
    platforms = [Platform(*text.split("/")) for text in offered]
    assert choose_platform(Platform.parse(wanted), platforms) == chosen
