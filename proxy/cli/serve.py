"""``fastpull-proxy serve``: run the proxy."""

from __future__ import annotations

import logging
import sys

import uvloop

from fastpull.cache.errors import StoreVersionError
from fastpull.config.proxy import ProxySettings
from fastpull.proxy.cli.errors import CommandError
from fastpull.proxy.data_dir import DataDirError, owned
from fastpull.proxy.server import ListenError, run_server


def serve(settings: ProxySettings, log_level: str) -> int:
    """Serve until SIGTERM or SIGINT, then stop gracefully; return the exit code."""
    logging.basicConfig(
        level=log_level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    logging.getLogger("aiohttp.access").setLevel("INFO")
    try:
        with owned(settings.data_dir):
            uvloop.run(run_server(settings))
    except DataDirError as exc:
        raise CommandError(str(exc), exc.remedy) from exc
    except ListenError as exc:
        raise CommandError(str(exc), exc.remedy) from exc
    except StoreVersionError as exc:
        raise CommandError(str(exc), "run the newer version, or start with an empty --data-dir") from exc
    return 0
