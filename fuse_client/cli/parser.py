"""The command line of ``fastpull-node``: what can be said, and what each word does."""

from __future__ import annotations

import argparse
from pathlib import Path

from fastpull.cache.scrub import DEFAULT_RATE, rate_of
from fastpull.config.errors import ConfigError

_ABOUT = """\
Runs container images before their bytes are here: containerd's snapshotter on a node, and a
look into any image from the command line. Content comes from a fastpull-proxy, on demand.

first steps:
  fastpull-node serve                              containerd's snapshotter, with no configuration at all
  fastpull-node ls docker.io/library/python:3.12 /usr/local/bin
  fastpull-node mount docker.io/library/python:3.12 /mnt && ls /mnt; fastpull-node umount /mnt
"""

_SERVE = """\
Run the node daemon until SIGTERM, Ctrl-C or `fastpull-node stop`. Needs root. With no options it asks
the proxy at http://127.0.0.1:5050, keeps its data where containerd expects a snapshotter of this name
(/var/lib/containerd/io.containerd.snapshotter.v1.fastpull) and listens on /run/fastpull/snapshotter.sock.

Killed or restarted, it leaves what is mounted mounted: readers wait until it is back, and notice nothing.

All settings, with their defaults: deploy/examples/node.toml. Each can also come from the environment:
  FASTPULL_NODE__CACHE__MAX_BYTES=200GiB     is   [cache] max_bytes = "200GiB"
"""

_MOUNT = """\
Mount the root file system of an image on a directory, read-only, without containerd and without
downloading it: what is read is fetched when it is read. An image that the proxy has not indexed yet is
indexed first. Uses the running daemon, or starts one in the background that ends with the umount.

examples:
  fastpull-node mount nvcr.io/nvidia/pytorch:24.10-py3 /mnt
  fastpull-node mount --proxy http://proxy.example:5050 --platform linux/arm64 IMAGE DIR

exit codes: 0 mounted · 1 it failed, the message says why · 2 wrong usage
"""

_UMOUNT = """\
Undo `fastpull-node mount`: unmount the directory, and let go of the image.
"""

_LS = """\
List a directory of an image without mounting or downloading it: names, sizes, owners and times come
from the image's index alone.

examples:
  fastpull-node ls docker.io/library/python:3.12
  fastpull-node ls -l IMAGE /usr/lib/x86_64-linux-gnu
  fastpull-node ls --json IMAGE /app | jq '.[].name'
"""

_STATUS = """\
What the running daemon serves and how it is: driver and kernel, mounted images with how much of them
is here, the node cache, the proxies, and who keeps the mounts should the daemon die.
"""

_DOCTOR = """\
Check a node before it goes live: kernel and driver, disk, proxies and clock, the daemon, containerd and its
configuration. One line for each finding, with the remedy where something is not as it should be. Needs root to
see everything; changes nothing.

exit codes: 0 ready, warnings aside · 1 something has to be mended
"""

_REPORT = """\
Where the seconds of a start went: who waited for which file and why, which bytes were used, fetched and fetched in
vain, what the plan had, which layer was needed when, and how long nobody waited for the image at all. Starts are
recorded as they happen; the last one of each image is kept, also over restarts of the daemon.

Name a container that runs here (its id or the begin of it), an image, or a chain; without a name: the last start.

examples:
  fastpull-node report
  fastpull-node report nvcr.io/nvidia/pytorch:24.10-py3 --html report.html
  fastpull-node report --json | jq '.waited_by_cause'
"""

_SCRUB = """\
Have the running daemon check everything it keeps on this node: chunks, bootstraps, chunk maps, traces. What is damaged
is dropped and fetched again; what a newer version wrote is left alone. Containers go on meanwhile. Interrupted, the
scrub ends.

exit codes: 0 all is right, or repaired · 1 something could not be checked or dropped · 2 wrong usage
"""

_STOP = """\
End the running daemon. Without options everything is unmounted first, and refused while containerd has
images that stand on it. Their files stay on the disk; the next start mounts them again.
"""


def build_parser() -> Parser:
    parser = Parser(prog="fastpull-node", description=_ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    serve = _command(commands, "serve", "run the node daemon", _SERVE)
    _settings(serve)
    serve.add_argument("--root", type=Path, metavar="DIR", help="overrides root, where data is kept")
    serve.add_argument("--run-dir", type=Path, metavar="DIR", help="overrides run_dir (default /run/fastpull)")
    serve.add_argument("--no-snapshotter", action="store_true", help="serve no containerd, only `mount` and the like")
    serve.add_argument(
        "--log-level", choices=("debug", "info", "warning", "error"), default="info", help="default: %(default)s"
    )
    serve.add_argument("--ready-fd", type=int, default=-1, help=argparse.SUPPRESS)  # written to, once it serves

    mount = _command(commands, "mount", "mount an image on a directory", _MOUNT)
    mount.add_argument("image", metavar="IMAGE")
    mount.add_argument("directory", type=Path, metavar="DIR")
    mount.add_argument(
        "--start",
        action="store_true",
        help="as for a container: fetch ahead what earlier starts needed, and let this one be learned from",
    )
    _platform(mount)
    _settings(mount)

    umount = _command(commands, "umount", "undo mount", _UMOUNT)
    umount.add_argument("directory", type=Path, metavar="DIR")
    _settings(umount, proxy=False)

    ls = _command(commands, "ls", "list files of an image without mounting it", _LS)
    ls.add_argument("image", metavar="IMAGE")
    ls.add_argument("path", nargs="?", default="/", metavar="PATH", help="default: %(default)s")
    ls.add_argument("-l", "--long", action="store_true", help="with modes, owners, sizes and times")
    ls.add_argument("--json", action="store_true", help="print JSON")
    _platform(ls)
    _settings(ls)

    doctor = _command(commands, "doctor", "check this node before it goes live", _DOCTOR)
    doctor.add_argument("--json", action="store_true", help="print JSON")
    doctor.add_argument(
        "--containerd-config",
        type=Path,
        default=Path("/etc/containerd/config.toml"),
        metavar="FILE",
        help="default: %(default)s",
    )
    _settings(doctor)

    status = _command(commands, "status", "how the daemon is", _STATUS)
    status.add_argument("--json", action="store_true", help="print JSON")
    _settings(status, proxy=False)

    report = _command(commands, "report", "where the seconds of a start went", _REPORT)
    report.add_argument("name", nargs="?", default="", metavar="CONTAINER|IMAGE|CHAIN", help="default: the last start")
    report.add_argument("--json", action="store_true", help="print JSON")
    report.add_argument("--html", type=Path, metavar="FILE", help="write one self-contained page")
    _platform(report)
    _settings(report)

    scrub = _command(commands, "scrub", "check all that is kept on this node", _SCRUB)
    scrub.add_argument(
        "--rate", type=_rate, default=DEFAULT_RATE, help="bytes read a second; 0 = no limit (default %(default)s)"
    )
    scrub.add_argument("--json", action="store_true", help="print JSON")
    _settings(scrub, proxy=False)

    stop = _command(commands, "stop", "end the daemon", _STOP)
    how = stop.add_mutually_exclusive_group()
    how.add_argument(
        "--keep-mounts", action="store_true", help="leave all mounted for the next daemon: restart, upgrade"
    )
    how.add_argument("--force", action="store_true", help="unmount also what containerd's images stand on")
    _settings(stop, proxy=False)
    return parser


class Parser(argparse.ArgumentParser):
    """Says where help is, with each complaint."""

    def error(self, message: str) -> None:  # type: ignore[override]  # exits, as the original
        self.exit(2, f"{self.prog}: {message}\n  try `{self.prog} --help`\n")


def _rate(text: str) -> int:
    try:
        return rate_of(text)
    except ConfigError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from exc


def _command(commands: argparse._SubParsersAction[Parser], name: str, summary: str, about: str) -> Parser:
    return commands.add_parser(
        name, help=summary, description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def _platform(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--platform", default="", metavar="OS/ARCH", help="default: the proxy's own, such as linux/amd64"
    )


def _settings(parser: argparse.ArgumentParser, *, proxy: bool = True) -> None:
    parser.add_argument("--config", type=Path, metavar="FILE", help="the node's settings as TOML")
    if proxy:
        parser.add_argument(
            "--proxy", action="append", metavar="URL", help="overrides proxies (default http://127.0.0.1:5050)"
        )
