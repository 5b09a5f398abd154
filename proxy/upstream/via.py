"""Knowing our own requests, so that a proxy whose upstream is itself does not ask for ever."""

from __future__ import annotations

import secrets

VIA = "Via"
_NAME = f"fastpull-proxy-{secrets.token_hex(6)}"
OUR_VIA = f"1.1 {_NAME}"
"""Sent with every request upstream (RFC 9110, 7.6.3). One name a process."""


def is_our_own(via: str | None) -> bool:
    """Has a request come from this process, over whatever detours?"""
    return via is not None and _NAME in via
