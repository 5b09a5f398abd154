"""``fastpull-proxy serve`` as a process of a test."""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

from harness.processes import OwnedProcess, free_port, run
from harness.registry import PASSWORD, USERNAME, Registry


class Proxy:
    """In front of the given private registries, with its data under ``root``; may be killed and started again."""

    def __init__(self, root: Path, registries: Iterable[Registry], *, extra_settings: str = "") -> None:
        self.root = root
        self.port = free_port()
        root.mkdir(parents=True, exist_ok=True)
        self.config = root / "proxy.toml"
        self.config.write_text(self._settings(registries) + extra_settings)
        command = [sys.executable, "-P", "-m", "fastpull.proxy", "serve", "--config", self.config]
        self.process = OwnedProcess(command, root / "proxy.log")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> Self:
        self.process.start().wait_until(self.is_ready, "the proxy is ready")
        return self

    def stop(self) -> None:
        self.process.stop()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def is_ready(self) -> bool:
        return self.status_of("/readyz") == 200

    def warm(self, image: str, *, seconds: float = 120.0) -> dict[str, Any]:
        """Have an image indexed; returns the summary of ``fastpull-proxy warm --json``."""
        output = run(
            *(sys.executable, "-P", "-m", "fastpull.proxy", "warm", "--proxy", self.url, "--json", image),
            seconds=seconds,
        )
        return dict(json.loads(output[output.index("{") :]))

    def get(self, path: str) -> Any:
        """The JSON of an answer of ``/v1``."""
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return json.load(answer)

    def status_of(self, path: str) -> int:
        """The status code; 0 = nobody answers."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=10) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as exc:
            exc.close()
            return exc.code
        except OSError:
            return 0

    def _settings(self, registries: Iterable[Registry]) -> str:
        settings = f"""\
data_dir = "{self.root / "data"}"
[listen]
port = {self.port}
"""
        for registry in registries:
            settings += f'[upstreams."{registry.host}"]\nurl = "{registry.url}"\nredirect_private = true\n'
            if registry.with_login:
                settings += (
                    f'[upstreams."{registry.host}".credentials]\n'
                    f'kind = "basic"\nusername = "{USERNAME}"\npassword = "{PASSWORD}"\n'
                )
        return settings
