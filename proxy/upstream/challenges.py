"""WWW-Authenticate headers. Pure (RFC 9110, 11.6.1; distribution docs, "Token Authentication")."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_TOKEN68 = re.compile(r"[A-Za-z0-9._~+/-]+=*")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_SPACE = re.compile(r"[ \t]*")
_SEPARATORS = re.compile(r"[ \t,]*")
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)

MAX_HEADER = 16 * 1024


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way to log in that a server offers. ``scheme`` and parameter names are lower case."""

    scheme: str
    parameters: dict[str, str] = field(default_factory=dict)


def parse_challenges(headers: Iterable[str]) -> list[Challenge]:
    """Read all challenges of all ``WWW-Authenticate`` headers, in order.

    Quoted strings may hold commas; several challenges may share one header. What can not be read ends
    that header, and what was read before it counts: servers write strange things, and a login that works
    is better than a complaint.
    """
    return [challenge for header in headers for challenge in _parse(header[:MAX_HEADER])]


def _parse(text: str) -> list[Challenge]:
    challenges: list[Challenge] = []
    position = 0
    while (position := _skip(_SEPARATORS, text, position)) < len(text):
        token = _TOKEN.match(text, position)
        if token is None:
            break
        after = _skip(_SPACE, text, token.end())
        if text[after : after + 1] == "=" and challenges:
            # "name=" can only be a parameter of the challenge before it.
            value, end = _value(text, _skip(_SPACE, text, after + 1))
            if end < 0:
                break
            challenges[-1].parameters.setdefault(token.group().lower(), value)
            position = end
            continue
        challenges.append(Challenge(token.group().lower()))
        position = _skip_token68(text, after)
    return challenges


def _value(text: str, position: int) -> tuple[str, int]:
    quoted = _QUOTED.match(text, position)
    if quoted is not None:
        return _ESCAPE.sub(r"\1", quoted.group(1)), quoted.end()
    bare = re.compile(r"[^ \t,\"]*").match(text, position)
    return (bare.group(), bare.end()) if bare is not None and bare.group() else ("", -1)


def _skip_token68(text: str, position: int) -> int:
    """Step over ``Negotiate dG9rZW4=``; stay where parameters begin."""
    match = _TOKEN68.match(text, position)
    if match is None:
        return position
    end = _skip(_SPACE, text, match.end())
    is_whole_value = end == len(text) or text[end] == ","
    return end if is_whole_value else position


def _skip(pattern: re.Pattern[str], text: str, position: int) -> int:
    match = pattern.match(text, position)
    return match.end() if match is not None else position
