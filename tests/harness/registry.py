"""A private docker-registry process on the loopback, with a look at what was asked of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from harness.oci import Image
from harness.processes import OwnedProcess, accepts, free_port, run

USERNAME = "puller"
PASSWORD = "open-sesame"
# htpasswd line for the two above; docker-registry accepts bcrypt only.
_HTPASSWD = "puller:$2y$05$IJ9wTJ3wjlLLiUkDFIs2VOnP9L.gpAFUdKV2D9hKQg2w9fuSnV6d6\n"

_REQUEST = re.compile(r'"(?P<method>[A-Z]+) (?P<path>/v2/\S*) HTTP/[0-9.]+" (?P<status>\d{3})')


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str
    status: int

    @property
    def blob(self) -> str | None:
        """The digest, if this is a successful download of a blob."""
        _, found, digest = self.path.partition("/blobs/")
        return digest.partition("?")[0] if found and self.method == "GET" and self.status < 400 else None


class Registry:
    """``http://127.0.0.1:<port>``. Images are pushed with skopeo and keep their manifests, byte for byte."""

    def __init__(self, root: Path, *, with_login: bool = False) -> None:
        self.port = free_port()
        self.with_login = with_login
        root.mkdir(parents=True, exist_ok=True)
        self._config = root / "config.yml"
        self._config.write_text(self._settings(root))
        self.process = OwnedProcess(["docker-registry", "serve", self._config], root / "registry.log")

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self.host}"

    def start(self) -> Self:
        self.process.start().wait_until(lambda: accepts(self.port), "the registry listens")
        return self

    def stop(self) -> None:
        self.process.stop()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def push(self, image: Image, name: str) -> str:
        """Push an image of a layout as ``name`` (``repository:tag``); return the full reference."""
        login = ["--dest-creds", f"{USERNAME}:{PASSWORD}"] if self.with_login else []
        run(
            *("skopeo", "--insecure-policy", "copy", "--preserve-digests", "--dest-tls-verify=false", *login),
            *(f"oci:{image.layout}:{image.name}", f"docker://{self.host}/{name}"),
            seconds=600,
        )
        return f"{self.host}/{name}"

    def requests(self) -> list[Request]:
        """Everything that was asked so far."""
        text = self.process.log.read_text(errors="replace") if self.process.log.exists() else ""
        return [
            Request(found["method"], found["path"], int(found["status"]))
            for found in map(_REQUEST.search, text.splitlines())
            if found
        ]

    @contextmanager
    def watched(self) -> Iterator[list[Request]]:
        """The requests that come in during the block; the list is filled at its end."""
        before, seen = len(self.requests()), list[Request]()
        yield seen
        seen += self.requests()[before:]

    def _settings(self, root: Path) -> str:
        settings = f"""\
version: 0.1
log:
  accesslog: {{disabled: false}}
  level: warn
storage:
  filesystem: {{rootdirectory: {root / "storage"}}}
  delete: {{enabled: true}}
http:
  addr: 127.0.0.1:{self.port}
  secret: not-a-secret
"""
        if self.with_login:
            (root / "htpasswd").write_text(_HTPASSWD)
            settings += f"auth:\n  htpasswd: {{realm: private, path: {root / 'htpasswd'}}}\n"
        return settings
