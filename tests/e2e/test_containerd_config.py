"""The configuration that we tell people to use is what we think it is."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from harness.containerd import SNAPSHOTTER
from harness.processes import run

from fastpull.config.node import NodeSettings

CONFIGS = Path(__file__).parents[2] / "deploy" / "containerd"
_CRI = {
    "config-1.x.toml": "io.containerd.grpc.v1.cri",
    "config-2.0.toml": "io.containerd.cri.v1.images",
    "config-2.1.toml": "io.containerd.cri.v1.images",
}


@pytest.mark.parametrize("name", _CRI)
def test_names_and_paths_are_the_daemons_defaults(name: str) -> None:
    """And no capability that breaks pulls, no place where kubelet would not look."""
    config = tomllib.loads((CONFIGS / name).read_text())
    plugin = config["proxy_plugins"][SNAPSHOTTER]
    settings = NodeSettings()

    assert plugin["address"] == str(settings.snapshotter.socket)
    assert plugin["exports"] == {"root": str(settings.root)}
    assert settings.root.name == f"io.containerd.snapshotter.v1.{SNAPSHOTTER}"
    assert "capabilities" not in plugin
    cri = config["plugins"][_CRI[name]]
    images = cri["containerd"] if "grpc" in _CRI[name] else cri
    assert images["snapshotter"] == SNAPSHOTTER
    assert images["discard_unpacked_layers"] is False


def test_the_transfer_service_knows_the_snapshotter_and_keeps_overlayfs() -> None:
    config = tomllib.loads((CONFIGS / "config-2.1.toml").read_text())
    entries = config["plugins"]["io.containerd.transfer.v1.local"]["unpack_config"]

    assert [entry["snapshotter"] for entry in entries] == [SNAPSHOTTER, "overlayfs"]


def test_containerd_1_x_accepts_its_file() -> None:
    dump = tomllib.loads(run("containerd", "--config", CONFIGS / "config-1.x.toml", "config", "dump"))

    assert dump["proxy_plugins"][SNAPSHOTTER]["type"] == "snapshot"
    assert dump["plugins"]["io.containerd.grpc.v1.cri"]["containerd"]["snapshotter"] == SNAPSHOTTER
    assert dump["plugins"]["io.containerd.grpc.v1.cri"]["registry"]["config_path"] == "/etc/containerd/certs.d"
