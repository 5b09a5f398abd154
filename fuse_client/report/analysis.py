"""What a start's record says: where its seconds went, and which of its bytes were needed. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import msgspec

from fastpull.fuse_client.start_record import Fetched, StartRecord, Wait

CAUSES = ("fetch", "queue", "inflate", "disk")
STEPS = 96  # of the time line
MOST_FILES = 500


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """Base of the parts of a report."""


class FileUse(Part, frozen=True, kw_only=True):
    path: str
    waited_seconds: float = 0.0
    waits: int = 0
    touched_bytes: int = 0
    first_seconds: float = 0.0  # since the begin of the start
    layer: int = -1


class Layer(Part, frozen=True, kw_only=True):
    """A layer of the image, and what the start touched of it."""

    number: int  # 0 = the lowest
    digest: str = ""
    blob_bytes: int = 0
    content_bytes: int = 0
    touched_bytes: int = 0
    touched_by_step: tuple[int, ...] = ()


class Step(Part, frozen=True, kw_only=True):
    """A slice of the time line."""

    waited_by_cause: dict[str, float]  # seconds of all readers
    touched_bytes: int


class Report(Part, frozen=True, kw_only=True):
    """All seconds count from the first read of the start, unless they say otherwise."""

    chain_id: str
    image: str = ""
    started_at: float  # the mount, seconds since the epoch
    ended_by: str  # settled, limit, unmount; empty = it goes on
    seconds_from_mount_to_first_read: float
    seconds: float  # first read to last first touch
    waiting_seconds: float  # in which at least one reader waited
    free_seconds: float  # the rest: no work on images can shorten it
    waited_by_cause: dict[str, float]  # summed over all readers
    waits: int
    waits_left_out: int
    used_chunks: int
    used_bytes: int
    image_bytes: int
    fetched_received_bytes: int  # as sent, compressed
    fetched_content_bytes: int
    fetched: tuple[Fetched, ...]
    vain_chunks: int
    vain_bytes: int
    vain_received_bytes: int
    planned_chunks: int
    planned_bytes: int
    plan_hits: int  # touched chunks that the plan had
    plan_misses: int  # touched chunks that it did not have
    step_seconds: float
    steps: tuple[Step, ...]
    files: tuple[FileUse, ...]  # longest waits first, then most bytes
    files_left_out: int = 0
    layers: tuple[Layer, ...] = ()


class KnownLayer(msgspec.Struct, frozen=True):
    digest: str
    blob_bytes: int


def analyse(
    record: StartRecord,
    path_of: Callable[[int], str],
    *,
    image: str = "",
    layers: Sequence[KnownLayer] = (),
    layer_of_places: Sequence[int] = (),
    sizes: Sequence[int] = (),
) -> Report:
    """``path_of``: device offset → path.

    ``layer_of_places`` and ``sizes``: of each place of the chunk map, where known.
    """
    touches = record.touches()
    begin = min([at_ms * 1000 for *_, at_ms, _ in touches] + [wait.at_us for wait in record.waits], default=0)
    end = max(
        [at_ms * 1000 for *_, at_ms, _ in touches] + [wait.at_us + wait.total_us for wait in record.waits],
        default=begin,
    )
    span = max(end - begin, 1)
    width = -(-span // STEPS)
    waiting = union((wait.at_us, wait.at_us + wait.total_us) for wait in record.waits)

    step_bytes = [0] * STEPS
    layer_bytes = [[0] * STEPS for _ in layers]
    files: dict[str, _File] = {}
    for index, offset, size, at_ms, _ in touches:
        step = min((at_ms * 1000 - begin) // width, STEPS - 1)
        step_bytes[step] += size
        file = files.setdefault(path_of(offset), _File())
        file.touched += size
        file.first = min(file.first, (at_ms * 1000 - begin) / 1e6)
        layer = layer_of_places[index] if index < len(layer_of_places) else -1
        if 0 <= layer < len(layers):
            file.layer = layer
            layer_bytes[layer][step] += size
    for wait in record.waits:
        file = files.setdefault(path_of(wait.offset), _File())
        file.waits += 1
        file.waited += wait.total_us / 1e6
        file.first = min(file.first, (wait.at_us - begin) / 1e6)

    used = sum(size for _, _, size, _, _ in touches)
    hits = sum(foreseen for *_, foreseen in touches)
    uses = sorted(
        (file.use(path) for path, file in files.items()),
        key=lambda use: (-use.waited_seconds, -use.touched_bytes, use.path),
    )
    return Report(
        chain_id=record.chain_id,
        image=image,
        started_at=record.started_at,
        ended_by=record.ended_by,
        seconds_from_mount_to_first_read=begin / 1e6,
        seconds=(end - begin) / 1e6,
        waiting_seconds=waiting / 1e6,
        free_seconds=max(0, end - begin - waiting) / 1e6,
        waited_by_cause={cause: sum(_part(wait, cause) for wait in record.waits) / 1e6 for cause in CAUSES},
        waits=len(record.waits) + record.waits_left_out,
        waits_left_out=record.waits_left_out,
        used_chunks=len(touches),
        used_bytes=used,
        image_bytes=record.content_bytes,
        fetched_received_bytes=sum(lane.received_bytes for lane in record.fetched),
        fetched_content_bytes=sum(lane.content_bytes for lane in record.fetched),
        fetched=record.fetched,
        vain_chunks=record.vain_chunks,
        vain_bytes=record.vain_bytes,
        vain_received_bytes=record.vain_received_bytes,
        planned_chunks=record.planned_chunks,
        planned_bytes=record.planned_bytes,
        plan_hits=hits,
        plan_misses=len(touches) - hits,
        step_seconds=width / 1e6,
        steps=tuple(
            Step(waited_by_cause=waited, touched_bytes=touched)
            for waited, touched in zip(_by_step(record.waits, begin, width), step_bytes, strict=True)
        ),
        files=tuple(uses[:MOST_FILES]),
        files_left_out=max(0, len(uses) - MOST_FILES),
        layers=tuple(
            Layer(
                number=number,
                digest=layer.digest,
                blob_bytes=layer.blob_bytes,
                content_bytes=sum(size for size, of in zip(sizes, layer_of_places, strict=False) if of == number),
                touched_bytes=sum(layer_bytes[number]),
                touched_by_step=tuple(layer_bytes[number]),
            )
            for number, layer in enumerate(layers)
        ),
    )


class _File:
    def __init__(self) -> None:
        self.waited = 0.0
        self.waits = 0
        self.touched = 0
        self.first = float("inf")
        self.layer = -1

    def use(self, path: str) -> FileUse:
        return FileUse(
            path=path,
            waited_seconds=round(self.waited, 6),
            waits=self.waits,
            touched_bytes=self.touched,
            first_seconds=round(self.first, 6),
            layer=self.layer,
        )


def union(spans: Iterable[tuple[int, int]]) -> int:
    """The length that the spans cover together."""
    covered = 0
    until: int | None = None
    for start, stop in sorted(spans):
        if until is None or start > until:
            covered += stop - start
            until = stop
        elif stop > until:
            covered += stop - until
            until = stop
    return covered


def _part(wait: Wait, cause: str) -> int:
    return {"fetch": wait.fetch_us, "queue": wait.queue_us, "inflate": wait.inflate_us, "disk": wait.disk_us}[cause]


def _by_step(waits: Iterable[Wait], begin: int, width: int) -> list[dict[str, float]]:
    """The seconds of all waits, by step and cause. A wait is first queued, then fetched, then inflated."""
    steps = [dict.fromkeys(CAUSES, 0.0) for _ in range(STEPS)]
    for wait in waits:
        at = wait.at_us - begin
        for cause in ("queue", "fetch", "inflate", "disk"):
            left = _part(wait, cause)
            while left > 0:
                step = min(at // width, STEPS - 1)
                room = left if step == STEPS - 1 else min(left, (step + 1) * width - at)
                steps[step][cause] += room / 1e6
                at += room
                left -= room
    return steps
