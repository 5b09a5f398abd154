"""The command line of ``fastpull-proxy``: what can be said, and what each word does."""

from __future__ import annotations

import argparse
from pathlib import Path

from fastpull.cache.scrub import DEFAULT_RATE, rate_of
from fastpull.config.errors import ConfigError

_ABOUT = """\
Starts huge container images in seconds: a registry mirror that also serves images
in small deduplicated chunks, so that nodes load only what a start really reads.

first steps:
  fastpull-proxy serve                          runs with no configuration at all
  fastpull-proxy warm docker.io/library/python:3.12
  fastpull-proxy hosts-toml --dir /etc/containerd/certs.d --dry-run
"""

_SERVE = """\
Run the proxy until SIGTERM or Ctrl-C. With no options it listens on 127.0.0.1:5050, keeps its
data in /var/lib/fastpull-proxy and stands in front of docker.io, ghcr.io, quay.io, nvcr.io,
registry.k8s.io and public.ecr.aws.

All settings, with their defaults: deploy/examples/proxy.toml. Each can also come from the environment:
  FASTPULL_PROXY__LISTEN__ADDRESS=0.0.0.0     is   [listen] address = "0.0.0.0"
"""

_WARM = """\
Have the running proxy pull, verify, index and keep an image before the first node asks for it.
Warming what is warm takes well under a second, so it is fine in a cron job or after each push.

exit codes: 0 the image is warm · 1 it failed, the message says why · 2 wrong usage

examples:
  fastpull-proxy warm nvcr.io/nvidia/pytorch:24.10-py3
  fastpull-proxy warm --platform linux/arm64 registry.example:5000/team/app@sha256:…
  fastpull-proxy warm --json IMAGE | jq .new_bytes
"""

_PURGE = """\
Make the running proxy forget an image: its manifest, its index, and all chunks and blobs that no
other image needs. With --tag only the answer "which digest is this tag" is forgotten.
"""

_SCRUB = """\
Have the running proxy check everything it holds: chunks, blobs, indexes, bootstraps, chunk maps, plans, manifests. What
is damaged is dropped and comes back when it is needed: from the registry, or from what it is made of. What a newer
version wrote is left alone. Nodes and pulls go on meanwhile. Interrupted, the scrub ends.

exit codes: 0 all is right, or repaired · 1 something could not be checked or dropped · 2 wrong usage

examples:
  fastpull-proxy scrub
  fastpull-proxy scrub --rate 1GB/s --json | jq .damaged
"""

_HOSTS = """\
Write the hosts.toml files that send containerd's pulls through the proxy. Where the proxy does not
answer, containerd goes to the registry itself. Shows what would change, then writes.
"""

_TRACE = """\
Start an image once on purpose, on this machine, and learn from it: for images that go live the first time. The
running `fastpull-node serve` of this machine mounts the image; COMMAND (or the image's own) runs in it as root with
a mount and PID namespace of its own and this machine's network; what it writes is thrown away. Needs root.

examples:
  fastpull-proxy trace registry.example/team/server:7
  fastpull-proxy trace registry.example/team/server:7 -- python3 -c 'import torch'

exit codes: 0 learned · 1 it failed, the message says why · 2 wrong usage
"""

_PLAN = """\
What has been learned about the starts of an image: the chunks that a start needs, in their order.
Plans never change what a container reads, only how soon it is there.
"""


def build_parser() -> _Parser:
    parser = _Parser(prog="fastpull-proxy", description=_ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    serve = _command(commands, "serve", "run the proxy", _SERVE)
    serve.add_argument("--config", type=Path, metavar="FILE", help="settings as TOML")
    serve.add_argument("--listen", metavar="ADDRESS:PORT", help="overrides [listen] (default 127.0.0.1:5050)")
    serve.add_argument(
        "--data-dir", type=Path, metavar="DIR", help="overrides data_dir (default /var/lib/fastpull-proxy)"
    )
    serve.add_argument(
        "--log-level", choices=("debug", "info", "warning", "error"), default="info", help="default: %(default)s"
    )

    warm = _command(commands, "warm", "pull, verify, index and keep an image", _WARM)
    warm.add_argument("image", metavar="IMAGE")
    _platform(warm)
    _connection(warm)
    _json(warm)

    status = _command(commands, "status", "what the proxy holds and does now", "")
    _connection(status)
    _json(status)

    images = _command(commands, "images", "the images that the proxy knows", "")
    _connection(images)
    _json(images)

    purge = _command(commands, "purge", "forget an image or a tag", _PURGE)
    purge.add_argument("image", metavar="IMAGE")
    purge.add_argument("--tag", action="store_true", help="only forget what the tag points to")
    _connection(purge)
    _json(purge)

    scrub = _command(commands, "scrub", "check all that the proxy holds", _SCRUB)
    scrub.add_argument(
        "--rate", type=_rate, default=DEFAULT_RATE, help="bytes read a second; 0 = no limit (default %(default)s)"
    )
    _connection(scrub)
    _json(scrub)

    hosts = _command(commands, "hosts-toml", "send containerd's pulls through the proxy", _HOSTS)
    hosts.add_argument("--dir", type=Path, default=Path("/etc/containerd/certs.d"), help="default: %(default)s")
    hosts.add_argument("--dry-run", action="store_true", help="only show what would change")
    hosts.add_argument("--config", type=Path, metavar="FILE", help="the proxy's settings: their upstreams are written")
    hosts.add_argument("--proxy", metavar="URL", help="as the nodes reach it (default: from the settings)")

    trace = _command(commands, "trace", "learn from a start that is made on purpose", _TRACE)
    trace.add_argument("image", metavar="IMAGE")
    trace.add_argument("arguments", nargs="*", metavar="-- COMMAND", help="default: what the image says")
    trace.add_argument("--seconds", type=float, default=120.0, help="end the command then (default %(default)s)")
    trace.add_argument("--node-config", type=Path, metavar="FILE", help="the settings of this machine's node")
    _platform(trace)
    _connection(trace)

    _plan(commands)
    return parser


def _plan(commands: argparse._SubParsersAction[_Parser]) -> None:
    plan = _command(commands, "plan", "look at or change what was learned about an image", _PLAN)
    actions = plan.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, about in (
        ("show", "how much is known"),
        ("export", "write the plan as JSON"),
        ("import", "replace the plan by an exported one"),
        ("drop", "forget the plan and the starts behind it"),
    ):
        action = actions.add_parser(name, help=about, description=about)
        action.add_argument("image", metavar="IMAGE")
        if name in ("export", "import"):
            action.add_argument("file", type=Path, nargs="?", metavar="FILE", help="default: standard input or output")
        if name == "show":
            _json(action)
        _platform(action)
        _connection(action)


class _Parser(argparse.ArgumentParser):
    """Says where help is, with each complaint."""

    def error(self, message: str) -> None:  # type: ignore[override]  # exits, as the original
        self.exit(2, f"{self.prog}: {message}\n  try `{self.prog} --help`\n")


def _rate(text: str) -> int:
    try:
        return rate_of(text)
    except ConfigError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from exc


def _command(commands: argparse._SubParsersAction[_Parser], name: str, summary: str, about: str) -> _Parser:
    return commands.add_parser(
        name,
        help=summary,
        description=about or summary[0].upper() + summary[1:] + ".",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _platform(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--platform", default="", metavar="OS/ARCH", help="default: the proxy's own, such as linux/amd64"
    )


def _connection(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--proxy", metavar="URL", help="the running proxy (default http://127.0.0.1:5050)")
    parser.add_argument("--ca", type=Path, metavar="FILE", help="CA of an https:// proxy")
    parser.add_argument("--cert", type=Path, metavar="FILE", help="our certificate, where the proxy asks for one")
    parser.add_argument("--key", type=Path, metavar="FILE", help="its key")


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")
