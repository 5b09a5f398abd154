"""A worker process: ``python -m fastpull.proxy.ingest.worker``, started and fed by ``pool.py``.

Processes, because reading tars and looking up chunks is Python and holds the GIL; started afresh, not forked,
because LMDB and threads do not survive a fork. Each layer runs on threads of its own (``pipeline.py``).
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import msgspec

from fastpull.cache.digest import Digest
from fastpull.cache.errors import CacheError
from fastpull.cache.lmdb_store import LmdbChunkStore
from fastpull.cache.resident import return_freed_memory
from fastpull.image.layer_index import LayerIndex
from fastpull.image.limits import LayerLimits
from fastpull.proxy.ingest.crew import StoppedError
from fastpull.proxy.ingest.errors import describe, is_expected
from fastpull.proxy.ingest.growing_file import GrowingFile
from fastpull.proxy.ingest.messages import (
    LENGTH,
    Available,
    BuildChain,
    Cancel,
    Done,
    IngestLayer,
    Message,
    Progress,
    Request,
    Setup,
    frame,
)
from fastpull.proxy.ingest.pipeline import LayerPipeline, LayerSource

log = logging.getLogger(__name__)

_PROGRESS_SECONDS = 0.1
_SWITCH_SECONDS = 0.001  # may pass until a thread that comes back from C gets the GIL; the default is five times that


class Worker:
    """Answers requests until its input ends."""

    def __init__(self, setup: Setup, output: IO[bytes]) -> None:
        self._setup = setup
        self._output = output
        self._writing = threading.Lock()
        self._store = LmdbChunkStore.open(Path(setup.store), quota_bytes=setup.quota_bytes)
        self._layers: dict[int, tuple[GrowingFile, LayerPipeline]] = {}  # those at work

    def handle(self, request: Request) -> None:
        match request:
            case IngestLayer():
                self._start_layer(request)
            case Available():
                if (running := self._layers.get(request.id)) is not None:
                    running[0].grow(request.available)
            case Cancel():
                if (running := self._layers.get(request.id)) is not None:
                    running[1].stop(StoppedError("called off"))
            case BuildChain():
                self._answer(request.id, lambda: _built(request))
            case Setup():
                pass

    def _start_layer(self, request: IngestLayer) -> None:
        setup = self._setup
        blob = GrowingFile(Path(request.path), request.blob_bytes, self._progress_of(request.id))
        blob.grow(request.available)
        pipeline = LayerPipeline(
            LayerSource(
                blob,
                request.media_type,
                Digest.parse(request.diff_id),
                Digest.parse(request.verify_blob) if request.verify_blob else None,
                stop=blob.stop,
            ),
            self._store,
            LayerLimits.of_blob(
                request.blob_bytes,
                max_entries=setup.max_entries,
                max_path_bytes=setup.max_path_bytes,
                max_layer_bytes=setup.max_layer_bytes,
                max_ratio=setup.max_ratio,
            ),
            zstd_level=setup.zstd_level,
            compressors=setup.compressors,
        )
        self._layers[request.id] = (blob, pipeline)

        def ingest() -> bytes:
            try:
                return pipeline.run().to_bytes()
            finally:
                del self._layers[request.id]

        self._answer(request.id, ingest)

    def _answer(self, request: int, work: Callable[[], bytes]) -> None:
        def run() -> None:
            try:
                self._send(Done(request, work()))
            except StoppedError:
                pass  # nobody waits for an answer
            except BaseException as exc:  # goes to the other process
                if not is_expected(exc):
                    log.exception("request %d failed", request)
                self._send(describe(request, exc))
            if not self._layers:
                return_freed_memory()  # there may be no work for a minute, or never again

        threading.Thread(target=run, name=f"request-{request}", daemon=True).start()

    def _progress_of(self, request: int) -> Callable[[int], None]:
        last = 0.0

        def progress(consumed: int) -> None:
            nonlocal last
            if (now := time.monotonic()) - last >= _PROGRESS_SECONDS:
                last = now
                self._send(Progress(request, consumed))

        return progress

    def _send(self, message: Message) -> None:
        with self._writing:
            self._output.write(frame(message))
            self._output.flush()


def _built(request: BuildChain) -> bytes:
    from fastpull.image.chain import build_chain  # not needed by a worker that only ingests

    return msgspec.msgpack.encode(build_chain([LayerIndex.from_bytes(index) for index in request.indexes]))


def _requests(stream: IO[bytes]) -> Iterator[Request]:
    decoder = msgspec.msgpack.Decoder(Request)
    while len(head := stream.read(LENGTH.size)) == LENGTH.size:
        body = stream.read(LENGTH.unpack(head)[0])
        yield decoder.decode(body)


def _serve(setup: Setup, requests: Iterator[Request], output: IO[bytes]) -> None:
    try:
        worker = Worker(setup, output)
    except CacheError as exc:  # without its store this process can only say why
        for request in requests:
            if isinstance(request, IngestLayer | BuildChain):
                output.write(frame(describe(request.id, exc)))
                output.flush()
        return
    for request in requests:
        worker.handle(request)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the proxy's to handle
    logging.basicConfig(format="%(levelname)s worker %(process)d %(name)s: %(message)s")
    sys.setswitchinterval(_SWITCH_SECONDS)
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever some library prints must not end up among the frames
    requests = _requests(sys.stdin.buffer)
    setup = next(requests, None)
    if isinstance(setup, Setup):
        _serve(setup, requests, output)
    os._exit(0)  # the proxy is gone: its layers are of no use, so no thread is waited for


if __name__ == "__main__":
    main()
