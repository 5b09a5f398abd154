"""Command line in, exit code out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from fastpull.config.errors import ConfigError
from fastpull.config.load import load
from fastpull.config.proxy import ListenSettings, ProxySettings
from fastpull.proxy.cli.connection import ProxyConnection
from fastpull.proxy.cli.errors import EXIT_INTERRUPTED, EXIT_USAGE, CommandError, UsageError
from fastpull.proxy.cli.parser import build_parser

ENVIRONMENT_PREFIX = "FASTPULL_PROXY"


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Failures become one line with the cause, one with the remedy, and a code."""
    options = build_parser().parse_args(arguments)
    try:
        return _dispatch(options)
    except CommandError as exc:
        return _fail(exc.cause, exc.remedy, exc.exit_code)
    except ConfigError as exc:
        return _fail(str(exc), "every key with its default stands in deploy/examples/proxy.toml", EXIT_USAGE)
    except KeyboardInterrupt:
        goes_on = "; the proxy goes on with what it was asked to do" if options.command == "warm" else ""
        sys.stderr.write(f"\nfastpull-proxy: interrupted{goes_on}\n")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has left: no complaint about that
        return 0


def _fail(cause: str, remedy: str, code: int) -> int:
    sys.stderr.write(f"fastpull-proxy: {cause}\n")
    if remedy:
        sys.stderr.write(f"  remedy: {remedy}\n")
    return code


def _dispatch(options: argparse.Namespace) -> int:
    match options.command:
        case "serve":
            settings = _served(options)  # mistakes in them are told without importing the server
            from fastpull.proxy.cli.serve import serve

            return serve(settings, options.log_level)
        case "hosts-toml":
            from fastpull.proxy.cli.hosts import hosts_toml

            return hosts_toml(_settings(options.config), options.dir, options.proxy, dry_run=options.dry_run)
        case _:
            return _ask(options)


def _ask(options: argparse.Namespace) -> int:
    """The commands that talk to a running proxy."""
    from fastpull.proxy.cli import plan, purge, scrub, status, trace, warm

    url = options.proxy or own_url(_settings(None))
    with ProxyConnection(url, ca=options.ca, certificate=options.cert, key=options.key) as proxy:
        match options.command, getattr(options, "action", None):
            case "warm", _:
                return warm.warm(proxy, options.image, options.platform, as_json=options.json)
            case "status", _:
                return status.status(proxy, as_json=options.json)
            case "images", _:
                return status.images(proxy, as_json=options.json)
            case "purge", _:
                return purge.purge(proxy, options.image, tag_only=options.tag, as_json=options.json)
            case "scrub", _:
                return scrub.scrub(proxy, options.rate, as_json=options.json)
            case "trace", _:
                return trace.trace(
                    proxy,
                    options.image,
                    options.platform,
                    options.arguments,
                    seconds=options.seconds,
                    config=options.node_config,
                )
            case "plan", "show":
                return plan.show(proxy, options.image, options.platform, as_json=options.json)
            case "plan", "export":
                return plan.export(proxy, options.image, options.platform, options.file)
            case "plan", "import":
                return plan.import_(proxy, options.image, options.platform, options.file)
            case "plan", "drop":
                return plan.drop(proxy, options.image, options.platform)
            case _:
                raise UsageError(f"unknown command {options.command}")


def _settings(config: Path | None) -> ProxySettings:
    return load(ProxySettings, config, prefix=ENVIRONMENT_PREFIX)


def _served(options: argparse.Namespace) -> ProxySettings:
    settings = _settings(options.config)
    if options.data_dir is not None:
        settings = msgspec.structs.replace(settings, data_dir=options.data_dir)
    if options.listen is not None:
        address, port = parse_listen(options.listen)
        listen = msgspec.structs.replace(settings.listen, address=address, port=port)
        settings = msgspec.structs.replace(settings, listen=listen)
    return settings


def parse_listen(text: str) -> tuple[str, int]:
    """``127.0.0.1:5050``, ``[::1]:5050``, ``:5050`` (all addresses) → address and port. Raise ``UsageError``."""
    address, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise UsageError(f"--listen {text!r} is no address and port", "write for example 0.0.0.0:5050 or [::]:5050")
    if address.startswith("[") and address.endswith("]"):
        address = address[1:-1]
    elif ":" in address:
        raise UsageError(f"--listen {text!r}: IPv6 needs brackets", f"write [{address}]:{port}")
    return address or "0.0.0.0", int(port)


def own_url(settings: ProxySettings) -> str:
    """Where a proxy with these settings is reached on its own machine."""
    listen: ListenSettings = settings.listen
    scheme = "https" if listen.tls_certificate else "http"
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listen.address, listen.address)
    return f"{scheme}://[{host}]:{listen.port}" if ":" in host else f"{scheme}://{host}:{listen.port}"
