"""The process dies between any two steps of a call, and starts again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from fakes.chains import FakeChains
from harness.fault_rows import Seen
from harness.snapshots import ServedSnapshotter

from fastpull.cache.digest import Digest, chain_ids
from fastpull.fuse_client.snapshotter.errors import SnapshotExistsError, SnapshotNotFoundError
from fastpull.fuse_client.snapshotter.journal import LmdbJournal
from fastpull.fuse_client.snapshotter.labels import SNAPSHOT_REF
from fastpull.fuse_client.snapshotter.operations import Snapshotter
from fastpull.fuse_client.snapshotter.records import Kind
from fastpull.fuse_client.snapshotter.state import Change

LAYERS = [Digest.of(b"one"), Digest.of(b"two")]
LOWER, UPPER = chain_ids(LAYERS)


class Died(BaseException):
    """No ``except Exception`` of ours sees it: as after SIGKILL, nothing is undone."""


class Steps:
    """Counts the steps of one call and dies at the wanted one."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.die_at: int | None = None

    def __call__(self, name: str) -> None:
        self.seen.append(name)
        if self.die_at == len(self.seen):
            raise Died(name)


def before_extraction(_: Snapshotter) -> None:
    pass


def extract_lazily(s: Snapshotter) -> None:
    with suppress(SnapshotExistsError):
        s.prepare("ns/1/extract", "", {SNAPSHOT_REF: str(LOWER)})


def both_layers(s: Snapshotter) -> None:
    extract_lazily(s)
    with suppress(SnapshotExistsError):
        s.prepare("ns/2/extract", str(LOWER), {SNAPSHOT_REF: str(UPPER)})


def prepare_container(s: Snapshotter) -> None:
    with suppress(SnapshotExistsError):
        s.prepare("ns/3/container", str(UPPER), {})


def prepare_plain(s: Snapshotter) -> None:
    with suppress(SnapshotExistsError):
        s.prepare("ns/4/plain", "", {})


def commit_plain(s: Snapshotter) -> None:
    with suppress(SnapshotNotFoundError, SnapshotExistsError):
        s.commit("ns/5/committed", "ns/4/plain", "", {})


def with_container(s: Snapshotter) -> None:
    both_layers(s)
    prepare_container(s)


def remove_everything(s: Snapshotter) -> None:
    for name in ("ns/3/container", str(UPPER), str(LOWER)):
        with suppress(SnapshotNotFoundError):
            s.remove(name)


def removed(s: Snapshotter) -> None:
    with_container(s)
    remove_everything(s)


def cleanup(s: Snapshotter) -> None:
    s.cleanup()


CALLS: list[tuple[str, Callable[[Snapshotter], None], Callable[[Snapshotter], None], set[str]]] = [
    # name, what was done before, the call, the names that must be there when it has been repeated
    ("lazy prepare", before_extraction, extract_lazily, {str(LOWER)}),
    ("container prepare", both_layers, prepare_container, {str(LOWER), str(UPPER), "ns/3/container"}),
    ("plain prepare", before_extraction, prepare_plain, {"ns/4/plain"}),
    ("commit", prepare_plain, commit_plain, {"ns/5/committed"}),
    ("remove", with_container, remove_everything, set()),
    ("cleanup", removed, cleanup, set()),
]
_MOST_STEPS = 12


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[Steps]:
    """The transactions count too: just before and just after each."""
    steps = Steps()
    apply = LmdbJournal.apply

    def watched(journal: LmdbJournal, change: Change) -> None:
        steps("before the transaction")
        apply(journal, change)
        steps("after the transaction")

    monkeypatch.setattr(LmdbJournal, "apply", watched)
    yield steps


@pytest.mark.fault(
    "snapshotter: dies between any two steps",
    done="at every step of Prepare, Commit, Remove and Cleanup, before and after each transaction; then a new start",
    promised="the records fit together, the call can be repeated, a cleanup leaves nothing over",
)
@pytest.mark.parametrize(("name", "before", "call", "expected"), CALLS, ids=[call[0] for call in CALLS])
def test_dying_at_any_step_is_harmless(
    tmp_path: Path,
    seen: Seen,
    steps: Steps,
    name: str,
    before: Callable[[Snapshotter], None],
    call: Callable[[Snapshotter], None],
    expected: set[str],
) -> None:
    """After the restart the records fit together; the call repeated gives what it gives without a crash;
    and after a cleanup nothing is left over, neither directories nor mounts."""
    for die_at in range(1, _MOST_STEPS + 1):
        root = tmp_path / str(die_at)
        root.mkdir()
        chains = FakeChains(root)
        chains.add(LAYERS)
        with ServedSnapshotter(root / "node", chains, step=steps, allow_mounts=False) as served:
            served.on_loop(_allow(served))
            before(served.snapshotter)
            steps.seen.clear()
            steps.die_at = die_at
            try:
                call(served.snapshotter)
            except Died:
                pass
            else:
                assert die_at > 1, f"{name} has no steps"
                seen(f"{name} at {die_at - 1} steps")
                return  # died at every step already
            finally:
                steps.die_at = None

        with ServedSnapshotter(root / "node", chains, step=steps) as served:
            assert_records_fit_together(served.snapshotter)
            call(served.snapshotter)
            assert_records_fit_together(served.snapshotter)
            assert {record.name for record in served.snapshotter.list()} == expected
            served.snapshotter.cleanup()
            assert_nothing_left_over(served, chains)
    raise AssertionError(f"{name} has more than {_MOST_STEPS} steps: {steps.seen}")


def assert_records_fit_together(snapshotter: Snapshotter) -> None:
    by_name = {record.name: record for record in snapshotter.list()}
    for record in by_name.values():
        if record.parent:
            assert by_name[record.parent].kind is Kind.COMMITTED
        if record.kind is not Kind.COMMITTED:
            for mount in snapshotter.mounts(record.name):
                for option in mount.options:
                    key, _, value = option.partition("=")
                    assert key not in ("upperdir", "workdir") or Path(value).is_dir()


def assert_nothing_left_over(served: ServedSnapshotter, chains: FakeChains) -> None:
    records = served.snapshotter.list()
    directories = {int(path.name) for path in (served.root / "snapshots").iterdir() if path.name.isdecimal()}
    assert directories <= {record.id for record in records}
    assert not list((served.root / "snapshots" / "removing").glob("*"))
    assert {str(chain) for chain in chains.mounted()} <= {record.name for record in records}


async def _allow(served: ServedSnapshotter) -> None:
    served._server._lazy.allow_mounts()  # without the tidying up: it would count as steps
