"""What containerd asks a snapshotter to do, in our own types. Blocking; called from many threads.

Every step of Prepare, Commit, Remove and Cleanup may be the last one before a crash. ``_step`` names each;
tests die there, reopen and look.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from fastpull.cache.digest import Digest
from fastpull.cache.wire import ChainState
from fastpull.fuse_client.snapshotter import labels as label_rules
from fastpull.fuse_client.snapshotter.decision import Verdict, decide, needs_no_question, proven_prefixes
from fastpull.fuse_client.snapshotter.directories import SnapshotDirectories
from fastpull.fuse_client.snapshotter.errors import (
    SnapshotCancelledError,
    SnapshotError,
    SnapshotExistsError,
    SnapshotNotFoundError,
    SnapshotPreconditionError,
    SnapshotUnavailableError,
)
from fastpull.fuse_client.snapshotter.lazy_chains import LazyChains
from fastpull.fuse_client.snapshotter.loop_calls import Caller, LoopCalls, Patient
from fastpull.fuse_client.snapshotter.mountinfo import MountedFs, read_mountinfo, uses_of
from fastpull.fuse_client.snapshotter.placement import Lowers, MountSpec, lowers_of, plan_mounts
from fastpull.fuse_client.snapshotter.records import Kind, Snapshot, Usage
from fastpull.fuse_client.snapshotter.state import SnapshotState
from fastpull.fuse_client.snapshotter.usage import UsageOfActive, disk_usage

log = logging.getLogger(__name__)

MOUNT_SECONDS = 60.0  # kubelet gives CreateContainer two minutes in all
ASK_SECONDS = 5.0  # for the proxy's answer, beyond the time that it may wait itself
UNMOUNT_SECONDS = 30.0

PATIENT = Patient()


class Snapshotter:
    """containerd's ``Snapshotter`` interface over our records, directories and chains.

    Answers that need no mount come from memory, also while the daemon is still restoring its mounts.
    """

    def __init__(
        self,
        state: SnapshotState,
        directories: SnapshotDirectories,
        lazy: LazyChains,
        calls: LoopCalls,
        *,
        prepare_wait_seconds: float,
        overlay_options: Sequence[str] = (),
        mounts: Callable[[], list[MountedFs]] = read_mountinfo,
        step: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._state = state
        self._directories = directories
        self._lazy = lazy
        self._calls = calls
        self._prepare_wait_seconds = prepare_wait_seconds
        self._overlay_options = tuple(overlay_options)
        self._mounts = mounts
        self._step = step
        self._active_usage = UsageOfActive()
        self._cleaning = threading.Lock()
        self._unrecorded: set[int] = set()  # ids whose directory exists before their record does
        state.skip_ids(max(directories.ids(), default=0))

    # ---------------------------------------------------------------------------------- creating

    def prepare(
        self, key: str, parent: str, labels: Mapping[str, str], caller: Caller = PATIENT
    ) -> tuple[MountSpec, ...]:
        """An active snapshot, or, for an extraction that can be served lazily, a placeholder.

        For the latter raise ``SnapshotExistsError``: containerd then looks for a committed snapshot with
        the label ``containerd.io/snapshot.ref`` and this parent, and downloads nothing.
        """
        label_rules.check_name(key, "key")
        kept = label_rules.checked_labels(labels)
        self._rederive(parent, caller)
        self._state.check_new(key, parent)
        if (target := label_rules.extraction_target(kept)) is not None:
            self._place(target, parent, kept, caller)
        return self._create(Kind.ACTIVE, key, parent, kept, caller)

    def view(self, key: str, parent: str, labels: Mapping[str, str], caller: Caller = PATIENT) -> tuple[MountSpec, ...]:
        label_rules.check_name(key, "key")
        self._rederive(parent, caller)
        self._state.check_new(key, parent)
        return self._create(Kind.VIEW, key, parent, label_rules.checked_labels(labels), caller)

    def mounts(self, key: str, caller: Caller = PATIENT) -> tuple[MountSpec, ...]:
        """The mounts again, with everything beneath them mounted: the last chance before runc."""
        record = self._state.get(key)
        if record.kind is Kind.COMMITTED:
            raise SnapshotPreconditionError(f"snapshot {key!r} is committed and has no mounts")
        return self._assemble(record.id, record.kind, record.parent, caller)

    def _place(self, target: Digest, parent: str, labels: dict[str, str], caller: Caller) -> None:
        """Return if containerd is to unpack the layer; raise ``SnapshotExistsError`` if not."""
        line = self._state.line(parent)
        if line and (below := line[0].chain):
            self._calls.soon(partial(self._lazy.no_longer_expect, below))
        verdict = needs_no_question(target, line, self._state.find(str(target)))
        if verdict is None:
            verdict = self._ask(target, line, caller)
        if not verdict.chains:
            log.info("%s is left to containerd: %s", target, verdict.reason)
            return
        self._step("prepare 1: the layer can be served lazily")
        self._state.place(verdict.chains, labels, ref_label=label_rules.SNAPSHOT_REF)
        self._step("prepare 2: the placeholder is recorded")
        log.info("%s is served lazily: %s", target, verdict.reason)
        self._calls.soon(partial(self._lazy.expect, target, now=label_rules.is_top_layer(labels)))
        raise SnapshotExistsError(f"target snapshot {str(target)!r}: already exists")

    def _ask(self, target: Digest, line: Sequence[Snapshot], caller: Caller) -> Verdict:
        try:
            state = self._chain_state(target, self._prepare_wait_seconds, caller)
        except SnapshotUnavailableError as exc:
            return Verdict((), f"the proxy could not be asked: {exc}")
        return decide(target, line, state)

    def _create(
        self, kind: Kind, key: str, parent: str, labels: dict[str, str], caller: Caller
    ) -> tuple[MountSpec, ...]:
        snapshot_id = self._state.reserve_id()
        self._unrecorded.add(snapshot_id)
        try:
            mounts = self._assemble(snapshot_id, kind, parent, caller)
            self._step("create 1: the directories are there")
            if not caller.is_active():
                raise SnapshotCancelledError(f"snapshot {key!r} is no longer wanted")
            self._state.create(snapshot_id, kind, key, parent, labels)
            self._step("create 2: the snapshot is recorded")
        finally:
            self._unrecorded.discard(snapshot_id)
        return mounts

    def _assemble(self, snapshot_id: int, kind: Kind, parent: str, caller: Caller) -> tuple[MountSpec, ...]:
        lowers = self._mounted(lowers_of(self._state.line(parent)), caller)
        is_active = kind is Kind.ACTIVE
        self._directories.ensure(snapshot_id, like=lowers[0] if lowers else None, writable=is_active)
        upper, work = self._directories.upper(snapshot_id), self._directories.work(snapshot_id)
        return plan_mounts(kind, upper, work, lowers, overlay_options=self._overlay_options)

    def _mounted(self, lowers: Lowers, caller: Caller) -> list[Path]:
        paths = [self._directories.upper(snapshot_id) for snapshot_id in lowers.unpacked]
        if (chain := lowers.chain) is not None:
            what = f"mount of {chain}"
            mount = partial(self._lazy.mount, chain)
            paths.append(self._calls.wait_for(mount, what, seconds=MOUNT_SECONDS, caller=caller))
        return paths

    # -------------------------------------------------------------------------- changing, removing

    def commit(self, name: str, key: str, parent: str, labels: Mapping[str, str]) -> None:
        """Called within containerd's metadata transaction: only our own, no walk over the files."""
        label_rules.check_name(name, "name")
        record = self._state.commit(name, key, parent, label_rules.checked_labels(labels))
        self._step("commit 1: the snapshot is renamed")
        self._active_usage.forget(record.id)

    def remove(self, key: str) -> None:
        """Forget the snapshot. Its files, and the mount of its chain, go with the next ``cleanup``."""
        record = self._state.remove(key)
        self._step("remove 1: the record is gone")
        self._active_usage.forget(record.id)

    def cleanup(self) -> None:
        """Unmount the chains and remove the files that no record needs.

        What is in use stays until it is not. Problems are logged: containerd can do nothing about them.
        """
        with self._cleaning:
            for chain in self._state.released():
                self._release(chain)
            for snapshot_id in self._directories.ids():
                if self._is_garbage(snapshot_id) and self._directories.discard(snapshot_id):
                    self._step("cleanup 3: a directory is in the trash")
            self._directories.empty_trash()
            self._step("cleanup 4: the trash is empty")

    def _is_garbage(self, snapshot_id: int) -> bool:
        # In this order: a snapshot is in _unrecorded until it has a record.
        return snapshot_id not in self._unrecorded and not self._state.has_id(snapshot_id)

    def _release(self, chain: Digest) -> None:
        try:
            if users := uses_of(self._mounts(), self._lazy.path_of(chain)):
                log.info("%s stays mounted: in use by %s", chain, ", ".join(users[:3]))
                return
            self._step("cleanup 1: nothing uses the chain")
            release = partial(self._lazy.release, chain, lambda: chain in self._state.released())
            self._calls.wait_for(release, f"unmount of {chain}", seconds=UNMOUNT_SECONDS, caller=PATIENT)
            self._step("cleanup 2: the chain is unmounted")
        except SnapshotError as exc:
            log.warning("%s stays mounted: %s", chain, exc)
            return
        self._state.settle(chain)

    # ------------------------------------------------------------------------------------- looking

    def stat(self, key: str, caller: Caller = PATIENT) -> Snapshot:
        self._rederive(key, caller)
        return self._state.get(key)

    def update(self, name: str, labels: Mapping[str, str], fields: Iterable[str], caller: Caller = PATIENT) -> Snapshot:
        self._rederive(name, caller)
        return self._state.relabel(name, label_rules.checked_labels(labels), fields)

    def list(self) -> list[Snapshot]:
        """All snapshots. Filters may be ignored: containerd looks at what it gets."""
        return self._state.all()

    def usage(self, key: str, caller: Caller = PATIENT) -> Usage:
        """What the snapshot itself takes. Nothing, for placeholders: the node's cache is shared."""
        record = self._state.get(key)
        if record.usage is not None:
            return record.usage
        upper = self._directories.upper(record.id)
        if record.kind is not Kind.COMMITTED:
            return self._active_usage.of(record.id, upper, caller.is_active)
        usage = disk_usage(upper, caller.is_active)
        self._state.measured(record, usage)
        return usage

    # --------------------------------------------------------------------------------- restarting

    def tidy_up(self) -> None:
        """``cleanup`` after a crash. Never raises. To be called once, in the background.

        What containers stand on is mounted again by ``Chains`` itself.
        """
        try:
            self.cleanup()
        except Exception:
            log.exception("tidying up failed")

    def _rederive(self, name: str, caller: Caller) -> None:
        """Bring back the records of a chain that containerd knows and we do not (our database was lost).

        The name is the chainID, and the layers that the proxy names hash to it: nothing is invented. Raise
        ``SnapshotUnavailableError`` when no proxy can be asked, because "not found" would make containerd
        give up on the image.
        """
        chain = label_rules.parse_chain(name)
        if chain is None or self._state.find(name) is not None:
            return
        state = self._chain_state(chain, 0.0, caller)
        if state.state not in ("ready", "indexing"):
            raise SnapshotNotFoundError(f"snapshot {name!r} does not exist, and the proxy can not serve it")
        if not (prefixes := proven_prefixes(chain, state)):
            raise SnapshotNotFoundError(f"snapshot {name!r} does not exist, and the proxy does not prove its layers")
        self._state.place(prefixes, {}, ref_label=label_rules.SNAPSHOT_REF)
        log.warning("the record of %s was lost and is derived from the proxy's layers", name)

    def _chain_state(self, chain: Digest, wait_seconds: float, caller: Caller) -> ChainState:
        ask = partial(self._lazy.state, chain, wait_seconds)
        limit = wait_seconds + ASK_SECONDS
        return self._calls.wait_for(ask, f"question for {chain}", seconds=limit, caller=caller)
