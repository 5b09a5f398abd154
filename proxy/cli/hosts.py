"""``fastpull-proxy hosts-toml``: send containerd's pulls through the proxy."""

from __future__ import annotations

import errno
import sys
from pathlib import Path

from fastpull.config.proxy import ProxySettings
from fastpull.proxy.cli.errors import CommandError
from fastpull.proxy.hosts_toml import write_hosts


def hosts_toml(settings: ProxySettings, directory: Path, proxy_url: str | None, *, dry_run: bool) -> int:
    """Show what changes under ``directory``, and unless ``dry_run`` write it."""
    from fastpull.proxy.cli.run import own_url

    url = proxy_url or own_url(settings)
    registries = {name: upstream.url for name, upstream in sorted(settings.all_upstreams.items())}
    try:
        changes = write_hosts(directory, url, registries, dry_run=True)
        for change in changes:
            sys.stdout.write(f"{change}\n")
        if not dry_run:
            write_hosts(directory, url, registries, dry_run=False)
    except OSError as exc:
        remedy = "run as root, or name another directory with --dir" if exc.errno != errno.EINVAL else ""
        raise CommandError(f"{directory}: {exc.strerror}", remedy) from exc
    if not changes:
        sys.stdout.write(f"{directory}: nothing to change\n")
    else:
        sys.stdout.write("nothing was written: --dry-run\n" if dry_run else f"{len(changes)} files written\n")
    return 0
