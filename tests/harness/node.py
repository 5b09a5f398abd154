"""``fastpull-node serve`` as a process of a test."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from harness.mounts import unmount_all_below
from harness.processes import OwnedProcess, run
from harness.waiting import until

_COMMAND = [sys.executable, "-P", "-m", "fastpull.fuse_client"]


class Node:
    """The daemon with its holder. Killed or restarted, it finds what was mounted; ``stop`` leaves nothing."""

    def __init__(
        self,
        root: Path,
        proxies: Sequence[str],
        *,
        data: Path | None = None,
        driver: str = "auto",
        extra_settings: str = "",
    ) -> None:
        """``data``: the snapshotter's root, by default ``<root>/data``. ``driver`` as in the settings."""
        self.root = root
        self.data = data or root / "data"
        self.run_dir = root / "run"
        self.socket = self.run_dir / "snapshotter.sock"
        root.mkdir(parents=True, exist_ok=True)
        self.config = root / "node.toml"
        self.config.write_text(self._settings(proxies) + extra_settings)
        self.set_driver(driver)
        self.process = OwnedProcess([*_COMMAND, "serve", "--config", self.config], root / "node.log")

    def set_driver(self, driver: str) -> None:
        """From its next start on; what is mounted stays as it is."""
        others = [line for line in self.config.read_text().splitlines() if not line.startswith("driver = ")]
        self.config.write_text("\n".join([f'driver = "{driver}"', *others, ""]))

    def start(self) -> Self:
        self.process.start().wait_until(self._answers, "the node daemon serves")
        return self

    def kill(self) -> None:
        """SIGKILL to the daemon alone; the holder and all mounts stay."""
        self.process.kill()

    def restart(self) -> None:
        """As systemd does it: SIGTERM, then a new daemon; mounts stay."""
        self.process.stop(group=False)
        self.start()

    def stop(self) -> None:
        """Unmount everything and end daemon and holder, whatever state they are in."""
        if self.process.is_running:
            with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
                self.command("stop", "--force")
        self.process.stop()
        unmount_all_below(self.root)
        unmount_all_below(self.data)
        for pid in self._leftovers():
            with contextlib.suppress(ProcessLookupError):
                run("kill", "-KILL", str(pid), check=False)
        until(lambda: not self._leftovers(), "holder and daemon have ended")

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(self, *_: object) -> None:
        self.stop()

    def command(self, *args: str | Path, seconds: float = 120.0) -> str:
        """Run ``fastpull-node <args>`` with this node's settings; options go after the command's name."""
        name, *rest = map(str, args)
        return run(*_COMMAND, name, "--config", self.config, *rest, seconds=seconds)

    def status(self) -> dict[str, Any]:
        return dict(json.loads(self.command("status", "--json")))

    def _answers(self) -> bool:
        done = subprocess.run(
            [*_COMMAND, "status", "--config", str(self.config)], capture_output=True, check=False, timeout=60
        )
        return done.returncode == 0 and self.socket.exists()

    def _leftovers(self) -> list[int]:
        """Daemon and holder: their command line names our settings or our run directory."""
        found = []
        for process in Path("/proc").iterdir():
            if process.name.isdecimal():
                with contextlib.suppress(OSError):
                    words = (process / "cmdline").read_bytes().decode(errors="replace")
                    if str(self.root) in words and ("fastpull" in words or "holder.py" in words):
                        found.append(int(process.name))
        return found

    def _settings(self, proxies: Sequence[str]) -> str:
        return f"""\
root = "{self.data}"
run_dir = "{self.run_dir}"
proxies = {json.dumps(list(proxies))}
[snapshotter]
socket = "{self.socket}"
"""
