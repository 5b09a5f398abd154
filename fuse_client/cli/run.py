"""Command line in, exit code out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import msgspec

from fastpull.cache.errors import CacheError
from fastpull.config.errors import ConfigError
from fastpull.config.load import load
from fastpull.config.node import NodeSettings
from fastpull.fuse_client.cli.parser import build_parser
from fastpull.fuse_client.errors import NodeError
from fastpull.image.errors import ImageError

ENVIRONMENT_PREFIX = "FASTPULL_NODE"
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Failures become one line with the cause, one with the remedy, and a code."""
    options = build_parser().parse_args(arguments)
    try:
        code = _dispatch(options, _load(options))
        sys.stdout.flush()
        return code
    except NodeError as exc:
        return _fail(str(exc), exc.remedy, EXIT_FAILED)
    except (CacheError, ImageError) as exc:
        return _fail(str(exc), "", EXIT_FAILED)
    except ConfigError as exc:
        return _fail(str(exc), "every key with its default stands in deploy/examples/node.toml", EXIT_USAGE)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has left: no complaint about that
        return 0
    except OSError as exc:
        return _fail(f"{exc.filename or 'a system call'}: {exc.strerror or exc}", "", EXIT_FAILED)
    except KeyboardInterrupt:
        sys.stderr.write("\nfastpull-node: interrupted\n")
        return EXIT_INTERRUPTED


def _dispatch(options: argparse.Namespace, settings: NodeSettings) -> int:
    """Import what the command needs, and no more: ``status`` should not wait for gRPC."""
    match options.command:
        case "serve":
            from fastpull.fuse_client.cli.serve import serve

            return serve(
                settings,
                log_level=options.log_level,
                snapshotter=not options.no_snapshotter,
                ready_fd=options.ready_fd,
            )
        case "mount":
            from fastpull.fuse_client.cli.mount import mount

            return mount(
                settings,
                options.image,
                options.platform,
                options.directory,
                start=options.start,
                config=options.config,
            )
        case "umount":
            from fastpull.fuse_client.cli.mount import umount

            return umount(settings, options.directory)
        case "ls":
            from fastpull.fuse_client.cli.ls import ls

            return ls(settings, options.image, options.platform, options.path, long=options.long, as_json=options.json)
        case "doctor":
            from fastpull.fuse_client.cli.doctor import doctor

            return doctor(settings, containerd_config=options.containerd_config, as_json=options.json)
        case "status":
            from fastpull.fuse_client.cli.status import status

            return status(settings, as_json=options.json)
        case "report":
            from fastpull.fuse_client.cli.report import report

            return report(settings, options.name, options.platform, as_json=options.json, html=options.html)
        case "scrub":
            from fastpull.fuse_client.cli.scrub import scrub

            return scrub(settings, options.rate, as_json=options.json)
        case _:
            from fastpull.fuse_client.cli.stop import stop

            return stop(settings, keep_mounts=options.keep_mounts, force=options.force)


def _load(options: argparse.Namespace) -> NodeSettings:
    settings = load(NodeSettings, options.config, prefix=ENVIRONMENT_PREFIX)
    changes = {name: value for name in ("root", "run_dir") if (value := getattr(options, name, None)) is not None}
    if proxies := getattr(options, "proxy", None):
        changes["proxies"] = tuple(url if "://" in url else f"http://{url}" for url in proxies)
    return msgspec.structs.replace(settings, **changes)


def _fail(cause: str, remedy: str, code: int) -> int:
    sys.stderr.write(f"fastpull-node: {cause}\n")
    if remedy:
        sys.stderr.write(f"  remedy: {remedy}\n")
    return code
