"""The example file is the reference of all settings: complete, and true."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from fastpull.config.load import load
from fastpull.config.proxy import CredentialSettings, ProxySettings, UpstreamSettings

EXAMPLE = Path(__file__).parents[4] / "deploy" / "examples" / "proxy.toml"
WITHOUT_DEFAULT = {"tls_certificate", "tls_key", "tls_client_ca"}
ASSIGNMENT = re.compile(r"#(\w+) = ")


def test_the_example_as_it_stands_gives_the_defaults() -> None:
    assert load(ProxySettings, EXAMPLE, prefix="NONE", environ={}) == ProxySettings()


def test_the_values_shown_are_the_defaults(tmp_path: Path) -> None:
    """Removing every comment sign changes nothing."""
    head = EXAMPLE.read_text().partition("# Registries.")[0]
    lines = [
        line[1:] if (found := ASSIGNMENT.match(line)) and found[1] not in WITHOUT_DEFAULT else line
        for line in head.splitlines()
    ]
    shown = tmp_path / "shown.toml"
    shown.write_text("\n".join(lines))

    assert load(ProxySettings, shown, prefix="NONE", environ={}) == ProxySettings()


def test_every_key_is_shown() -> None:
    shown = {found[1] for line in EXAMPLE.read_text().splitlines() if (found := ASSIGNMENT.match(line))}

    assert {*keys(ProxySettings), *keys(UpstreamSettings), *keys(CredentialSettings)} - shown == {
        "endpoint",
        "password",
    }


def test_the_upstreams_shown_can_be_used(tmp_path: Path) -> None:
    tail = EXAMPLE.read_text().partition("# Registries.")[2]
    lines = [line[1:] for line in tail.splitlines() if ASSIGNMENT.match(line) or line.startswith("#[")]

    tables = tomllib.loads("\n".join(lines))

    assert msgspec.convert(tables, ProxySettings, strict=False, dec_hook=lambda kind, value: kind(value)).upstreams


def keys(settings: type[msgspec.Struct]) -> Iterator[str]:
    for field in msgspec.structs.fields(settings):
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            if field.name != "credentials":
                yield from keys(field.type)
        elif field.name != "upstreams":
            yield field.name


@pytest.mark.parametrize("secret", ["password"])
def test_no_example_shows_a_secret_in_the_file(secret: str) -> None:
    assert not re.search(rf"^#?{secret} = ", EXAMPLE.read_text(), re.MULTILINE)
