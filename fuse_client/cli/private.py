"""A daemon for one ``fastpull-node mount``, where none runs: started for it and ended with it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from fastpull.config.node import NodeSettings
from fastpull.fuse_client.cli.connection import DaemonConnection
from fastpull.fuse_client.control_messages import FEATURES_FILE
from fastpull.fuse_client.drivers.mounts import mounts_below
from fastpull.fuse_client.errors import DaemonError

_END_SECONDS = 30.0
_LOG = "daemon.log"


class PrivateDaemon:
    """Lives in ``RUN_DIR/mounts/KEY`` and keeps its data in ``ROOT/mounts/KEY``, gone after ``stop``."""

    def __init__(self, settings: NodeSettings, target: Path) -> None:
        key = hashlib.sha256(os.fsencode(target)).hexdigest()[:12]
        self._settings = settings
        self._run_dir = settings.run_dir / "mounts" / key
        self._root = settings.root / "mounts" / key
        self.connection = DaemonConnection(self._run_dir)

    @property
    def exists(self) -> bool:
        return self._run_dir.is_dir()

    def start(self, config: Path | None) -> None:
        """Start it and wait until it serves. Raise ``DaemonError`` with the last words of its log."""
        self._run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._share_features(self._settings.run_dir, self._run_dir)
        read_fd, write_fd = os.pipe()
        command = [sys.executable, "-P", "-m", "fastpull.fuse_client", "serve", "--no-snapshotter"]
        command += ["--run-dir", str(self._run_dir), "--root", str(self._root), "--ready-fd", str(write_fd)]
        command += ["--config", str(config.absolute())] if config is not None else []
        for url in self._settings.proxies:
            command += ["--proxy", url]
        log = self._run_dir / _LOG
        try:
            with log.open("wb") as output:
                subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=(write_fd,),
                    start_new_session=True,
                    cwd="/",
                )
        finally:
            os.close(write_fd)
        with os.fdopen(read_fd, "rb") as ready:
            if not ready.read():  # the end of the file: it has ended
                words = log.read_text(errors="replace").strip().splitlines()
                raise DaemonError(
                    "the daemon for this mount did not start: " + (words[-1] if words else "it said nothing"),
                    remedy="fastpull-node serve --no-snapshotter shows more",
                )
        self._share_features(self._run_dir, self._settings.run_dir)

    def stop(self) -> None:
        """End it, unmounting what it has, and remove its directories. None there is fine."""
        if not self.exists:
            return
        if self.connection.is_served:
            self.connection.stop(force=True)
            self._wait_for_end()
        for directory in (self._run_dir, self._root):
            if mounts_below(directory):
                raise DaemonError(f"{directory} still has mounts", remedy=f"umount them, then remove {directory}")
            shutil.rmtree(directory, ignore_errors=True)

    @staticmethod
    def _share_features(known: Path, wanted: Path) -> None:
        """What the kernel can is found out once for all daemons; it takes half a second."""
        with contextlib.suppress(OSError):
            if not (wanted / FEATURES_FILE).exists():
                shutil.copyfile(known / FEATURES_FILE, wanted / FEATURES_FILE)

    def _wait_for_end(self) -> None:
        deadline = time.monotonic() + _END_SECONDS
        while self.connection.is_served or mounts_below(self._run_dir):
            if time.monotonic() > deadline:
                raise DaemonError(f"the daemon in {self._run_dir} does not end", remedy="look into its daemon.log")
            time.sleep(0.02)
