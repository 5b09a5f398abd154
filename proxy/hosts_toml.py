"""hosts.toml files that send containerd's pulls through the proxy (containerd docs, ``hosts.md``).

The proxy becomes the first host of each registry. The registry itself stays behind it as ``server``, with a dial
timeout in front: a proxy that is down, or answers 404 or 503, costs a second at most and no pull. containerd reads
the files for each pull, so nothing is restarted.
"""

from __future__ import annotations

import difflib
import errno
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fastpull.proxy.references import DOCKER_HUB

_BEGIN = "# fastpull-proxy: begin. What stands between these lines is written anew by `fastpull-proxy hosts-toml`."
_END = "# fastpull-proxy: end"
_BLOCK = re.compile(rf"^{re.escape(_BEGIN[:23])}.*?^{re.escape(_END)}\n\n?", re.MULTILINE | re.DOTALL)
_TABLE = re.compile(r"^[ \t]*\[", re.MULTILINE)
_SERVERS = {DOCKER_HUB: "https://registry-1.docker.io"}


@dataclass(frozen=True, slots=True)
class Change:
    """A file that is not as it should be. As text: the difference."""

    path: Path
    before: str
    after: str

    def __str__(self) -> str:
        lines = difflib.unified_diff(
            self.before.splitlines(),
            self.after.splitlines(),
            str(self.path) if self.before else "/dev/null",
            str(self.path),
            lineterm="",
        )
        return "\n".join(lines)


def write_hosts(
    directory: Path, proxy_url: str, upstreams: Iterable[str] | Mapping[str, str], dry_run: bool
) -> list[Change]:
    """Write ``<directory>/<upstream>/hosts.toml`` for each upstream; return what was (or would be) changed.

    ``upstreams`` are names, or names with the URL of the registry where that is not ``https://<name>``. What
    others wrote into a file stays; our host goes in front of theirs. Doing it twice changes nothing. Raise
    ``OSError``, also for a file that is not TOML.
    """
    servers = dict(upstreams) if isinstance(upstreams, Mapping) else dict.fromkeys(upstreams, "")
    changes = []
    for name, server in servers.items():
        path = directory / name / "hosts.toml"
        before = path.read_text() if path.exists() else ""
        after = with_proxy(before, proxy_url, server or _SERVERS.get(name, f"https://{name}"), path)
        if after != before:
            changes.append(Change(path, before, after))
    if not dry_run:
        for change in changes:
            _replace(change.path, change.after)
    return changes


def with_proxy(text: str, proxy_url: str, server: str, path: Path) -> str:
    """The file with our host in front of all others. Pure. Raise ``OSError`` for a text that is not TOML."""
    rest = _BLOCK.sub("", text)
    _check(rest, path)
    block = "\n".join(
        (
            _BEGIN,
            f'[host."{proxy_url.rstrip("/")}"]',
            '  capabilities = ["pull", "resolve"]',
            '  dial_timeout = "1s"',
            _END,
            "",
        )
    )
    if not rest.strip():
        rest = f'server = "{server}"\n'
    table = _TABLE.search(rest)
    if table is None:
        result = f"{rest.rstrip()}\n\n{block}"
    else:
        # Keys of the top level come before the first table, and containerd tries hosts in the order of the file.
        result = f"{rest[: table.start()]}{block}\n{rest[table.start() :]}"
    _check(result, path)
    return result


def _check(text: str, path: Path) -> None:
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise OSError(errno.EINVAL, f"{path} is not TOML ({exc}); mend or remove it") from exc


def _replace(path: Path, text: str) -> None:
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    fresh = path.with_name(".hosts.toml.new")
    fresh.write_text(text)
    fresh.chmod(0o644)
    fresh.replace(path)
