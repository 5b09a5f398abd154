"""``fastpull-proxy trace``: start an image here once, so that its first real start finds a plan.

The node daemon of this machine mounts the image; the command runs in it with a mount and PID namespace of its own
and what it writes goes to memory. Only ``fastpull-node`` is talked to: its command line is its interface.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from fastpull.cache.wire import ImageInfo, Plan
from fastpull.proxy.cli.connection import ProxyConnection
from fastpull.proxy.cli.errors import CommandError, UsageError

NODE = "fastpull-node"
SENT_SECONDS = 60.0  # until the node has sent what it recorded

# $1 the mounted image, $2 an empty directory, then the program that goes on inside.
_MOUNTS = """
set -e
image=$1 work=$2
shift 2
mount -t tmpfs fastpull-trace "$work"
mkdir "$work/upper" "$work/work" "$work/root"
mount -t overlay overlay -o "lowerdir=$image,upperdir=$work/upper,workdir=$work/work" "$work/root"
mkdir -p "$work/root/proc" "$work/root/dev" "$work/root/sys"
mount -t proc proc "$work/root/proc"
mount --rbind /dev "$work/root/dev"
mount --rbind /sys "$work/root/sys"
exec "$@"
"""

# The image's variables are set inside only: they must not reach a program of this machine.
_ENTER = """
import json, os, sys
root, directory, variables, *command = sys.argv[1:]
os.chroot(root)
os.chdir(directory)
os.execvpe(command[0], command, json.loads(variables))
"""

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class _Process(msgspec.Struct):
    """The part of an OCI image config that says what runs (image-spec, config.md)."""

    entrypoint: list[str] | None = msgspec.field(name="Entrypoint", default=None)
    cmd: list[str] | None = msgspec.field(name="Cmd", default=None)
    env: list[str] | None = msgspec.field(name="Env", default=None)
    working_dir: str | None = msgspec.field(name="WorkingDir", default=None)


class _Config(msgspec.Struct):
    config: _Process = msgspec.field(default_factory=_Process)


def trace(
    proxy: ProxyConnection, image: str, platform: str, command: Sequence[str], *, seconds: float, config: Path | None
) -> int:
    """Run the command; return the exit code. Nothing stays mounted or running, whatever happens."""
    if os.geteuid() != 0:
        raise CommandError("only root can mount an image and run in it", "run this with sudo")
    options = ["--config", str(config)] if config is not None else []
    used = {chain["chain_id"]: chain["users"] for chain in _status(options)["chains"]}
    with tempfile.TemporaryDirectory(prefix="fastpull-trace-") as scratch:
        root, work = Path(scratch, "image"), Path(scratch, "work")
        work.mkdir()
        with _mounted(image, platform, root, options):
            info = _info(proxy, image, platform)
            if users := used.get(info.chain_id):
                raise CommandError(
                    f"{image} is in use on this node already, by {', '.join(users)}: its start can not be told apart",
                    "remove its containers and the image from this node, or use another node",
                )
            process = msgspec.json.decode(info.config, type=_Config).config
            wanted = list(command) or [*(process.entrypoint or ()), *(process.cmd or ())]
            if not wanted:
                raise UsageError(f"{image} has no command of its own", f"fastpull-proxy trace {image} -- COMMAND…")
            ended = _run(root, work, wanted, process, seconds)
    sys.stdout.write(f"{image}: {' '.join(wanted)[:60]} {ended}\n")
    _until_sent(options)
    plan = proxy.get(f"/v1/chains/{info.chain_id}/plan", Plan)
    sys.stdout.write(f"{image}: plan of {len(plan.chunks)} chunks from {plan.starts} starts\n")
    return 0 if plan.starts else 1


def _info(proxy: ProxyConnection, image: str, platform: str) -> ImageInfo:
    query = {"ref": image, "platform": platform} if platform else {"ref": image}
    return proxy.get("/v1/images", ImageInfo, **query)


def _run(root: Path, work: Path, command: Sequence[str], process: _Process, seconds: float) -> str:
    """How the command ended, in words."""
    variables = {"PATH": _PATH} | dict(variable.partition("=")[::2] for variable in process.env or ())
    arguments = ["unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child"]
    arguments += ["/bin/sh", "-c", _MOUNTS, "trace", str(root), str(work), sys.executable, "-I", "-S", "-c", _ENTER]
    arguments += [str(work / "root"), process.working_dir or "/", json.dumps(variables), *command]
    with subprocess.Popen(arguments) as child:
        try:
            return f"ended with exit code {child.wait(seconds)}"
        except subprocess.TimeoutExpired:
            return f"was ended after {seconds:.0f} s"
        finally:
            child.kill()  # --kill-child: and everything in its namespace with it


@contextlib.contextmanager
def _mounted(image: str, platform: str, directory: Path, options: Sequence[str]) -> Iterator[None]:
    which = ["--platform", platform] if platform else []
    _node("mount", *options, "--start", *which, image, str(directory))
    try:
        yield
    finally:
        _node("umount", *options, str(directory))


def _until_sent(options: Sequence[str]) -> None:
    deadline = time.monotonic() + SENT_SECONDS
    while _status(options)["traces_waiting"]:
        if time.monotonic() > deadline:
            raise CommandError(
                "the node could not send what it recorded; it goes on trying", "look at: fastpull-node status"
            )
        time.sleep(0.2)


def _status(options: Sequence[str]) -> dict:  # type: ignore[type-arg]
    return dict(json.loads(_node("status", *options, "--json")))


def _node(*arguments: str) -> str:
    """Output of ``fastpull-node``. Raise ``CommandError`` with its own words."""
    # Installed together they stand together, also where that is not on the PATH.
    program = shutil.which(NODE, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if program is None:
        raise CommandError(f"{NODE} is not installed here", "run this on a machine that is a node")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        cause, _, remedy = done.stderr.strip().rpartition("\n  remedy: ")
        raise CommandError(cause or remedy, remedy if cause else "")
    return done.stdout
