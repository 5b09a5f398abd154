"""A private containerd: own root, state, sockets and configuration; nothing of the machine's is touched.

    with Containerd(tmp, snapshotter_socket=..., registry_mirrors={"127.0.0.1:5000": "http://127.0.0.1:5050"}) as c:
        with c.cri() as cri:
            cri.pull("127.0.0.1:5000/demo:1")
        c.ctr("images", "ls")

Needs root. After ``stop`` nothing is left: no shim, container, mount, cgroup or socket.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Self

import grpc

from harness.cri import CriClient
from harness.mounts import unmount_all_below
from harness.processes import OwnedProcess, run
from harness.waiting import until

SNAPSHOTTER = "fastpull"
_RUNC_ROOT = Path("/run/containerd/runc")  # the shim's default, whatever containerd's own state directory


class Containerd:
    def __init__(
        self,
        root: Path,
        *,
        snapshotter_socket: Path | None = None,
        snapshotter_root: Path | None = None,
        default_snapshotter: str | None = None,
        sandbox_image: str = "",
        registry_mirrors: Mapping[str, str] | None = None,
        extra_settings: str = "",
    ) -> None:
        """``default_snapshotter``: that of CRI; ours where there is a socket, else overlayfs.

        ``registry_mirrors``: registry host → URL of the mirror in front of it. The registries are plain
        HTTP, as is everything on the loopback for containerd.
        """
        self.root = root
        self.socket = root / "containerd.sock"
        self.state = root / "state"
        self.data = root / "data"
        self.certs = root / "certs.d"
        self.logs = root / "pods"
        self.snapshotter = default_snapshotter or (SNAPSHOTTER if snapshotter_socket else "overlayfs")
        for directory in (self.certs, self.logs, root / "cni"):
            directory.mkdir(parents=True, exist_ok=True)
        for host, mirror in (registry_mirrors or {}).items():
            self.set_mirror(host, mirror)
        config = root / "config.toml"
        proxy = _proxy_plugin(snapshotter_socket, snapshotter_root) if snapshotter_socket else ""
        version = "version = 3\n" if _major_version() >= 2 else "version = 2\n"
        config.write_text(version + self._settings(sandbox_image) + proxy + extra_settings)
        self.process = OwnedProcess(["containerd", "--config", config], root / "containerd.log")

    def start(self) -> Self:
        self.process.start().wait_until(self._answers, "containerd serves CRI")
        return self

    def restart(self) -> None:
        """Stop containerd alone, as systemd does: containers and shims go on; then start it again."""
        self.process.stop(group=False)
        self.start()

    def stop(self) -> None:
        """End containerd and everything that it has started, whatever state it is in."""
        self.process.stop(group=False)
        for bundle in self.state.glob("io.containerd.runtime.v2.task/*/*"):
            _end_task(bundle)
        _kill_shims(str(self.socket))
        unmount_all_below(self.root)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(self, *_: object) -> None:
        self.stop()

    def cri(self) -> CriClient:
        return CriClient(self.socket, self.logs)

    def set_mirror(self, host: str, mirror: str | None) -> None:
        """Take effect at the next pull. ``None`` = straight to the registry."""
        hosts = self.certs / host / "hosts.toml"
        hosts.parent.mkdir(parents=True, exist_ok=True)
        text = f'server = "http://{host}"\n'
        if mirror:
            text += f'\n[host."{mirror}"]\n  capabilities = ["pull", "resolve"]\n'
        hosts.write_text(text)

    # -------------------------------------------------------------------------------------- commands

    def ctr(self, *args: str | Path, namespace: str = "k8s.io", seconds: float = 300.0, check: bool = True) -> str:
        return run("ctr", "--address", self.socket, "--namespace", namespace, *args, seconds=seconds, check=check)

    def ctr_remote(self, *args: str | Path, namespace: str = "default", seconds: float = 300.0) -> str:
        return run("ctr-remote", "--address", self.socket, "--namespace", namespace, *args, seconds=seconds)

    def collect_garbage(self) -> None:
        """A whole garbage collection, finished when this returns."""
        self.ctr("content", "prune", "references")

    def blobs(self, namespace: str = "k8s.io") -> set[str]:
        """The digests in the content store."""
        return set(self.ctr("content", "ls", "--quiet", namespace=namespace).split())

    def snapshots(self, snapshotter: str = "", namespace: str = "k8s.io") -> list[str]:
        """The snapshots that containerd knows, by its own names."""
        listing = self.ctr("snapshots", "--snapshotter", snapshotter or self.snapshotter, "ls", namespace=namespace)
        lines = [line.split() for line in listing.splitlines()]
        header = next(number for number, words in enumerate(lines) if words[:1] == ["KEY"])  # warnings may precede
        return [words[0] for words in lines[header + 1 :] if words]

    def log_lines(self, pattern: str) -> list[str]:
        return [line for line in self.process.log.read_text(errors="replace").splitlines() if re.search(pattern, line)]

    def _answers(self) -> bool:
        if not self.socket.exists():
            return False
        done = subprocess.run(
            ["ctr", "--address", str(self.socket), "plugins", "ls", "-q"], capture_output=True, check=False, timeout=60
        )
        if done.returncode != 0:
            return False
        with self.cri() as cri:
            try:
                cri.images()
            except grpc.RpcError:  # CRI answers Version long before it has loaded its images
                return False
            return True

    def _settings(self, sandbox_image: str) -> str:
        common = f"""\
root = "{self.data}"
state = "{self.state}"
[grpc]
  address = "{self.socket}"
[debug]
  address = "{self.root / "debug.sock"}"
  level = "debug"
[plugins."io.containerd.internal.v1.opt"]
  path = "{self.root / "opt"}"
"""
        return common + (self._cri_2(sandbox_image) if _major_version() >= 2 else self._cri_1(sandbox_image))

    # Without CNI, AppArmor and the right to lower an OOM score: a container, a VM and CI have them rarely.

    def _cri_1(self, sandbox_image: str) -> str:
        return f"""\
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{sandbox_image}"
{self._runtime()}
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "{self.snapshotter}"
  [plugins."io.containerd.grpc.v1.cri".cni]
    conf_dir = "{self.root / "cni"}"
    bin_dir = "{self.root / "cni"}"
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "{self.certs}"
"""

    def _cri_2(self, sandbox_image: str) -> str:
        unpack = "".join(
            f'[[plugins."io.containerd.transfer.v1.local".unpack_config]]\n'
            f'  platform = "linux"\n  snapshotter = "{name}"\n'
            for name in dict.fromkeys((self.snapshotter, "overlayfs"))
        )
        return f"""\
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "{self.snapshotter}"
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "{sandbox_image}"
  [plugins."io.containerd.cri.v1.images".registry]
    config_path = "{self.certs}"
[plugins."io.containerd.cri.v1.runtime"]
{self._runtime()}
  [plugins."io.containerd.cri.v1.runtime".cni]
    conf_dir = "{self.root / "cni"}"
    bin_dirs = ["{self.root / "cni"}"]
{unpack}"""

    @staticmethod
    def _runtime() -> str:
        return """\
  disable_apparmor = true
  disable_hugetlb_controller = true
  restrict_oom_score_adj = true
  tolerate_missing_hugetlb_controller = true"""


def _major_version() -> int:
    """Of the containerd on the PATH: ``containerd <name> [v]1.6.20~ds1 <revision>``."""
    found = re.search(r"\sv?(\d+)\.\d+", run("containerd", "--version"))
    assert found, "containerd --version names no version"
    return int(found[1])


def _proxy_plugin(socket: Path, root: Path | None) -> str:
    exports = f'  [proxy_plugins.{SNAPSHOTTER}.exports]\n    root = "{root}"\n' if root else ""
    return f'[proxy_plugins.{SNAPSHOTTER}]\n  type = "snapshot"\n  address = "{socket}"\n{exports}'


def _end_task(bundle: Path) -> None:
    """Kill a container as a shim would, and drop its cgroups and the shim's socket."""
    namespace, identity = bundle.parent.name, bundle.name
    run("runc", "--root", _RUNC_ROOT / namespace, "delete", "--force", identity, check=False)
    with contextlib.suppress(OSError):
        address = (bundle / "address").read_text().removeprefix("unix://")
        Path(address).unlink()


def _kill_shims(address: str) -> None:
    for pid in _shims(address):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    until(lambda: not list(_shims(address)), "shims have ended")


def _shims(address: str) -> Iterable[int]:
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            with contextlib.suppress(OSError):
                words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
                if "containerd-shim" in words[0] and address in words:
                    yield int(process.name)


def labels_of(listing: str) -> dict[str, str]:
    """The labels in the JSON of ``ctr snapshots info``."""
    return dict(json.loads(listing).get("Labels") or {})
