"""TOML file and environment → settings. The only place that reads either."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from fastpull.config.errors import ConfigError
from fastpull.config.units import ByteSize

T = TypeVar("T", bound=msgspec.Struct)


def load(
    settings: type[T],
    path: Path | None,
    *,
    prefix: str,
    environ: Mapping[str, str] | None = None,
) -> T:
    """Read ``settings`` from ``path`` (or only defaults), then apply the environment.

    A variable ``<PREFIX>__SECTION__KEY`` overrides ``[section] key``; a double underscore
    separates levels, because keys hold single ones. A value in brackets is TOML, for the keys that are
    lists: ``<PREFIX>__PROXIES='["http://a:5050", "http://b:5050"]'``. Raise ``ConfigError`` for an
    unreadable file, an unknown key or a value of the wrong type.
    """
    raw: dict[str, Any] = {}
    if path is not None:
        try:
            raw = tomllib.loads(path.read_text())
        except OSError as exc:
            raise ConfigError(f"{path}: {exc.strerror or exc}") from exc
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
            raise ConfigError(f"{path}: {exc}") from exc
    _apply_environment(raw, prefix, os.environ if environ is None else environ)
    try:
        return msgspec.convert(raw, settings, strict=False, dec_hook=_decode)
    except msgspec.ValidationError as exc:
        raise ConfigError(f"{path or 'environment'}: {exc}") from exc


def _apply_environment(raw: dict[str, Any], prefix: str, environ: Mapping[str, str]) -> None:
    for name, value in environ.items():
        head, *levels = name.split("__")
        if head != prefix or not levels:
            continue
        table = raw
        for level in levels[:-1]:
            table = table.setdefault(level.lower(), {})
            if not isinstance(table, dict):
                raise ConfigError(f"{name}: {level.lower()} is no table")
        table[levels[-1].lower()] = _list(name, value) if value.startswith("[") else value


def _list(name: str, text: str) -> object:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError(f"{name}={text}: {exc}") from exc


def _decode(kind: type, value: object) -> object:
    if kind is ByteSize and isinstance(value, int | str):
        try:
            return ByteSize.parse(value)
        except ConfigError as exc:
            raise ValueError(str(exc)) from exc
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise NotImplementedError(kind)
