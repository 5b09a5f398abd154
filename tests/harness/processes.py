"""Processes that a test owns: started with a log, ended for certain."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

from harness.waiting import PATIENCE_SECONDS, until

_KEPT_LOG_BYTES = 4000


class OwnedProcess:
    """A child in a process group of its own. Output goes to ``log``; ``stop`` leaves nothing of the group."""

    def __init__(self, args: Sequence[str | Path], log: Path, *, env: Mapping[str, str] | None = None) -> None:
        self.args = [str(arg) for arg in args]
        self.log = log
        self._env = {**os.environ, **(env or {})}
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._child is not None, "not started"
        return self._child.pid

    @property
    def is_running(self) -> bool:
        return self._child is not None and self._child.poll() is None

    def children(self, module: str) -> list[int]:
        """The pids of its own children whose command line names the Python module."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                parent = int(path.joinpath("stat").read_text().rpartition(")")[2].split()[1])
                command = path.joinpath("cmdline").read_bytes()
            except (OSError, IndexError):
                continue
            if parent == self.pid and module.encode() in command:
                found.append(int(path.name))
        return sorted(found)

    def start(self) -> Self:
        assert not self.is_running, f"{self.args[0]} runs already"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._child = subprocess.Popen(
                self.args,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._env,
                start_new_session=True,
            )
        return self

    def wait_until(self, is_ready: Callable[[], object], what: str, *, seconds: float = PATIENCE_SECONDS) -> Self:
        """Wait until it serves. Fail at once, with the end of its log, when it ends instead."""

        def ready_or_dead() -> object:
            if not self.is_running:
                raise AssertionError(f"{self.args[0]} ended before {what}:\n{self.log_tail()}")
            return is_ready()

        try:
            until(ready_or_dead, what, seconds=seconds, ignore=(OSError,))
        except AssertionError as exc:
            raise AssertionError(f"{exc}\n{self.log_tail()}") from exc
        return self

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to the process alone, and for SIGKILL wait for its end."""
        os.kill(self.pid, number)
        if number == signal.SIGKILL:
            self.wait()

    def wait(self, seconds: float = PATIENCE_SECONDS) -> int:
        assert self._child is not None, "not started"
        return self._child.wait(seconds)

    def stop(self, *, seconds: float = 20.0, group: bool = True) -> None:
        """SIGTERM, then SIGKILL; then, with ``group``, whatever is left of its process group."""
        if self._child is None:
            return
        if self.is_running:
            self._child.terminate()
            try:
                self._child.wait(seconds)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait(seconds)
        if group:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._child.pid, signal.SIGKILL)
        self._child = None

    def log_tail(self) -> str:
        return self.log.read_text(errors="replace")[-_KEPT_LOG_BYTES:] if self.log.exists() else "(no log)"


def free_port() -> int:
    """A TCP port of the loopback that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def accepts(port: int) -> bool:
    """Whether somebody listens on the loopback's port."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def run(*args: str | Path, seconds: float = PATIENCE_SECONDS, check: bool = True, **kwargs: object) -> str:
    """Run a command to its end and return its output; fail with all of it."""
    done = subprocess.run(  # type: ignore[call-overload]
        [str(arg) for arg in args],
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        timeout=seconds,
        text=True,
        errors="replace",
        **kwargs,
    )
    output = str(done.stdout)
    if check:
        assert done.returncode == 0, f"{' '.join(map(str, args))} exited {done.returncode}:\n{output}"
    return output
