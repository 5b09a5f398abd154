"""Looks at a node for ``doctor.py``: files, programs, sockets, the proxies. Changes nothing, waits for nothing long."""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path

import aiohttp

from fastpull.config.node import NodeSettings, TlsSettings
from fastpull.fuse_client.cli.connection import DaemonConnection
from fastpull.fuse_client.doctor import Facts, PlaceFacts, ProxyFacts
from fastpull.fuse_client.doctor_containerd import ContainerdFacts
from fastpull.fuse_client.drivers.choice import has_pyfuse3
from fastpull.fuse_client.drivers.mounts import mounts
from fastpull.fuse_client.drivers.probe import KernelFeatures, probe
from fastpull.fuse_client.errors import NodeError
from fastpull.fuse_client.fetch.transport import tls_context
from fastpull.fuse_client.status import NodeStatus, version

_PROGRAM_SECONDS = 20.0
_SOCKET_SECONDS = 5.0
_HTTP_SECONDS = 5.0
_TEXT_BYTES = 500


async def gather(settings: NodeSettings, *, containerd_config: Path) -> Facts:
    """Raise ``ConfigError`` for settings with which no proxy can be asked."""
    is_root = os.geteuid() == 0
    daemon = await asyncio.to_thread(_daemon, settings)
    pyfuse3, containerd, proxies, kernel = await asyncio.gather(
        asyncio.to_thread(_pyfuse3),
        asyncio.to_thread(_containerd, containerd_config),
        _proxies(settings.proxies, settings.tls),
        _kernel(daemon, is_root=is_root),
    )
    return Facts(
        is_root=is_root,
        version=version(),
        kernel=kernel,
        dev_fuse=_dev_fuse(),
        pyfuse3=pyfuse3,
        containerd=containerd,
        snapshotter=_answers(settings.snapshotter.socket),
        daemon_version=daemon.version if daemon else "",
        proxies=proxies,
        root=_place(settings.root),
        run_dir=_place(settings.run_dir),
    )


def _daemon(settings: NodeSettings) -> NodeStatus | None:
    try:
        return DaemonConnection(settings.run_dir).status()
    except NodeError:
        return None


async def _kernel(daemon: NodeStatus | None, *, is_root: bool) -> KernelFeatures | None:
    if daemon is not None:
        return daemon.kernel
    if not is_root:
        return None
    scratch = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="fastpull-doctor-"))
    try:
        return await probe(scratch)
    finally:
        await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)


def _dev_fuse() -> str:
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError as exc:
        return exc.strerror or str(exc)
    return ""


def _pyfuse3() -> str:
    if not has_pyfuse3():
        return "absent"
    code, _, err = _run(sys.executable, "-P", "-c", "import pyfuse3")
    return "" if code == 0 else err.strip().rpartition("\n")[2] or "it can not be imported"


def _containerd(config_path: Path) -> ContainerdFacts:
    code, out, err = _run("containerd", "--version")
    if code != 0:
        return ContainerdFacts(config_path=str(config_path))
    version_text = out.strip()
    code, out, err = _run("containerd", "--config", str(config_path), "config", "dump")
    config, config_error = None, err.strip()[-_TEXT_BYTES:]
    if code == 0:
        try:
            config, config_error = tomllib.loads(out), ""
        except tomllib.TOMLDecodeError as exc:
            config_error = str(exc)
    address = (config or {}).get("grpc", {}).get("address") or "/run/containerd/containerd.sock"
    code, plugins, err = _run("ctr", "--address", str(address), "--connect-timeout", "5s", "plugins", "ls")
    return ContainerdFacts(
        version=version_text,
        config_path=str(config_path),
        config=config,
        config_error=config_error,
        plugins=plugins if code == 0 else "",
        plugins_error="" if code == 0 else err.strip()[-_TEXT_BYTES:] or f"ctr can not reach {address}",
    )


def _run(*command: str) -> tuple[int, str, str]:
    """Exit code, output, complaints; 127 for a program that is not there, 124 for one that does not end."""
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=_PROGRAM_SECONDS, check=False, text=True, errors="replace"
        )
    except FileNotFoundError:
        return 127, "", f"{command[0]} is not on PATH"
    except (OSError, subprocess.TimeoutExpired) as exc:
        return 124, "", str(exc)
    return done.returncode, done.stdout, done.stderr


def _answers(path: Path) -> str:
    with socket.socket(socket.AF_UNIX) as probing:
        probing.settimeout(_SOCKET_SECONDS)
        try:
            probing.connect(str(path))
        except OSError as exc:
            return exc.strerror or str(exc)
    return ""


async def _proxies(urls: Sequence[str], tls: TlsSettings) -> tuple[ProxyFacts, ...]:
    timeout = aiohttp.ClientTimeout(total=_HTTP_SECONDS)
    connector = aiohttp.TCPConnector(ssl=tls_context(tls))
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        return tuple(await asyncio.gather(*(_proxy(session, url) for url in urls)))


async def _proxy(session: aiohttp.ClientSession, url: str) -> ProxyFacts:
    try:
        async with session.get(f"{url.rstrip('/')}/readyz") as response:
            now = time.time()
            text = (await response.content.read(_TEXT_BYTES)).decode(errors="replace").strip()
            not_ready = "" if response.status == 200 else text or f"it answers {response.status}"
            return ProxyFacts(url=url, not_ready=not_ready, ahead_seconds=_ahead(response.headers.get("Date"), now))
    except aiohttp.ClientConnectorError as exc:
        return ProxyFacts(url=url, error=exc.os_error.strerror or str(exc))
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as exc:
        return ProxyFacts(url=url, error=str(exc) or type(exc).__name__)


def _ahead(date: str | None, now: float) -> float | None:
    """Of an HTTP date, which has whole seconds: half of one is added."""
    if date is None:
        return None
    try:
        return email.utils.parsedate_to_datetime(date).timestamp() + 0.5 - now
    except ValueError:
        return None


def _place(path: Path) -> PlaceFacts:
    """Of a directory that is not there yet: the file system on which it will be."""
    path = path.absolute()
    nearest = path
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    try:
        info, room = nearest.stat(), os.statvfs(nearest)
        if not nearest.is_dir():
            return PlaceFacts(path=str(path), exists=False, error=f"{nearest} is no directory")
    except OSError as exc:
        return PlaceFacts(path=str(path), exists=False, error=exc.strerror or str(exc))
    return PlaceFacts(
        path=str(path),
        exists=nearest == path,
        uid=info.st_uid,
        mode=info.st_mode & 0o7777,
        fstype=_fstype(nearest.resolve()),
        free_bytes=room.f_bavail * room.f_frsize,
    )


def _fstype(path: Path) -> str:
    found = ""
    depth = -1
    with contextlib.suppress(OSError):
        for mount in mounts():  # of several at one place, the last is on top
            if path.is_relative_to(mount.path) and len(mount.path.parts) >= depth:
                found, depth = mount.fstype, len(mount.path.parts)
    return found
