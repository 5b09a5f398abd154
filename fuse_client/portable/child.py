"""The process of one mounted chain. It outlives the daemon that started it, and ends with its mount.

    python -P -m fastpull.fuse_client.portable.child --token T --lock FILE --chain HEX --bootstrap FILE
        --chunk-map FILE --target DIR --store DIR --socket SOCKET --wait-seconds N [--verify-always]

Goes to the background when the tree is mounted; then the first process exits with 0. Or it says on standard output
what failed and exits with 1. ``FILE`` is locked (flock) as long as the process lives, and holds its pid: daemons know
from it whether a mount is served. The mount's source is ``T``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import logging
import mmap
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fastpull.cache.digest import Digest
from fastpull.cache.tasks import Tasks
from fastpull.fuse_client.errors import NodeError
from fastpull.image.errors import ImageError

log = logging.getLogger(__name__)

_TIDY_SECONDS = 60.0
_OOM_SCORE = Path("/proc/self/oom_score_adj")


def main(argv: Sequence[str] | None = None) -> int:
    options = _parse(argv)
    # uvloop gives children more descriptors than it should. A listening socket of the daemon that lived on here would
    # take connections when the daemon is gone, and answer none.
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    lock = os.open(options.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    read_end, write_end = os.pipe()
    if os.fork():
        return _wait_for_child(read_end, write_end)
    os.close(read_end)
    _detach(lock)
    logging.basicConfig(
        level=logging.INFO, format=f"%(asctime)s %(levelname)s child of {options.chain[:12]}: %(message)s"
    )

    def ready(words: str = "ready") -> None:
        with contextlib.suppress(OSError):
            os.write(write_end, words.encode())
        os.close(write_end)

    try:
        _serve(options, ready)
    except (NodeError, ImageError, OSError) as exc:
        remedy = getattr(exc, "remedy", "")
        log.error("%s", exc)  # noqa: TRY400 - the message says all
        with contextlib.suppress(OSError):  # closed: it was ready before
            ready(f"{exc}\n{remedy}")
        return 1
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="fastpull-node-child", allow_abbrev=False)
    for name in ("token", "chain"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("lock", "bootstrap", "chunk-map", "target", "store", "socket"):
        parser.add_argument(f"--{name}", required=True, type=Path)
    parser.add_argument("--wait-seconds", required=True, type=float)
    parser.add_argument("--verify-always", action="store_true")
    return parser.parse_args(argv)


def _wait_for_child(read_end: int, write_end: int) -> int:
    os.close(write_end)
    with os.fdopen(read_end) as answer:
        words = answer.read()  # to its end: the child has said it, or has died
    sys.stdout.write(words)
    return 0 if words == "ready" else 1


def _detach(lock: int) -> None:
    os.setsid()
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1):
        os.dup2(null, fd)
    os.close(null)
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    with contextlib.suppress(OSError):  # not root, or not in this container
        _OOM_SCORE.write_text("-900")  # its death is the death of the containers that it serves


def _serve(options: argparse.Namespace, ready: Callable[[], None]) -> None:
    import uvloop  # a third less CPU than asyncio's own loop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_run(options, ready))


async def _run(options: argparse.Namespace, ready: Callable[[], None]) -> None:
    # Here, behind the fork: the process that waits needs none of it.
    from fastpull.fuse_client.portable.content import ChainContent
    from fastpull.fuse_client.portable.kernel import mounted, tune
    from fastpull.fuse_client.portable.link import DaemonLink
    from fastpull.fuse_client.portable.operations import TreeOperations
    from fastpull.fuse_client.portable.tree import Tree
    from fastpull.image.chunk_map import ChunkMap
    from fastpull.image.erofs.reader import Bootstrap

    chain = Digest.parse(f"sha256:{options.chain}")
    async with contextlib.AsyncExitStack() as stack:
        tasks = Tasks()
        stack.push_async_callback(tasks.aclose)
        bootstrap = Bootstrap.open(_mapped(options.bootstrap))
        chunk_map = ChunkMap.open(_mapped(options.chunk_map))
        link = DaemonLink(options.socket, chain, wait_seconds=options.wait_seconds)
        content = ChainContent(chain, chunk_map, options.store, link, verify_always=options.verify_always)
        stack.callback(content.close)
        link.on_again = content.uses.forget
        operations = TreeOperations(Tree(bootstrap), content)
        served = mounted(operations, options.target, options.token, is_waiting=lambda: link.is_waiting)
        answer = await stack.enter_async_context(served)
        answering = tasks.spawn(answer(), name="answer the kernel")
        await _until_answered(options.target, answering)
        tune(options.target)
        ready()
        _ = tasks.spawn(link.run(), name="connection to the daemon")
        _ = tasks.spawn(operations.look_for_xattrs(), name="look for xattrs")
        _ = tasks.spawn(_tidy(content.tidy), name="tidy")
        await answering
        log.info("unmounted")


async def _until_answered(target: Path, answering: asyncio.Task[None]) -> None:
    """Kernel and library have agreed on all, and a request has come and gone. Raise ``OSError`` if not."""
    probe = asyncio.get_running_loop().run_in_executor(None, os.statvfs, target)
    both: list[asyncio.Future[Any]] = [probe, answering]
    await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    await probe


async def _tidy(tidy: Callable[[], None]) -> None:
    while True:
        await asyncio.sleep(_TIDY_SECONDS)
        tidy()


def _mapped(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


if __name__ == "__main__":
    sys.exit(main())
