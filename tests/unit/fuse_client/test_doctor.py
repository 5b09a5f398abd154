"""What the doctor says of a node: one row for each thing that can be wrong, and what to do about it."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fastpull.config.node import NodeSettings
from fastpull.config.units import ByteSize, GiB
from fastpull.fuse_client.cli.doctor import report_lines
from fastpull.fuse_client.doctor import Facts, Finding, PlaceFacts, ProxyFacts, examine
from fastpull.fuse_client.doctor_containerd import ContainerdFacts, version_of
from fastpull.fuse_client.drivers.probe import KernelFeatures

CONFIGS = Path(__file__).parents[3] / "deploy" / "containerd"
SETTINGS = NodeSettings()
KERNEL = KernelFeatures(
    release="6.18.0", fuse_minor=45, fuse_resend=True, erofs_file_backed=True, erofs_directio=True, erofs_loop=False
)
NO_EROFS = msgspec.structs.replace(
    KERNEL, erofs_file_backed=False, erofs_directio=False, erofs_problem="the kernel has no EROFS"
)
PLUGINS = """\
TYPE                            ID                       PLATFORMS      STATUS
io.containerd.snapshotter.v1    overlayfs                linux/amd64    ok
io.containerd.snapshotter.v1    fastpull                 -              ok
"""


def config(name: str = "config-1.x.toml") -> dict[str, Any]:
    return tomllib.loads((CONFIGS / name).read_text())


CONTAINERD = ContainerdFacts(
    version="containerd github.com/containerd/containerd 1.7.24 88bf19b", config=config(), plugins=PLUGINS
)
GOOD = Facts(
    is_root=True,
    version="1.0",
    kernel=KERNEL,
    pyfuse3="absent",
    containerd=CONTAINERD,
    daemon_version="1.0",
    proxies=(ProxyFacts(url="http://a:5050", ahead_seconds=0.4), ProxyFacts(url="http://b:5050", ahead_seconds=-0.4)),
    root=PlaceFacts(path=str(SETTINGS.root), exists=True, mode=0o711, fstype="ext4", free_bytes=500 * GiB),
    run_dir=PlaceFacts(path="/run/fastpull", exists=True, mode=0o700, fstype="tmpfs", free_bytes=GiB),
)


def but(**changes: Any) -> Facts:
    return msgspec.structs.replace(GOOD, **changes)


def with_containerd(**changes: Any) -> Facts:
    return but(containerd=msgspec.structs.replace(CONTAINERD, **changes))


def with_root(**changes: Any) -> Facts:
    return but(root=msgspec.structs.replace(GOOD.root, **changes))


def changed(change: Callable[[dict[str, Any]], object], name: str = "config-1.x.toml") -> dict[str, Any]:
    made = config(name)
    change(made)
    return made


def cri(made: dict[str, Any]) -> dict[str, Any]:
    section: dict[str, Any] = made["plugins"]["io.containerd.grpc.v1.cri"]
    return section


def bad(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.verdict != "ok"]


@pytest.mark.parametrize(
    ("name", "version"),
    [("config-1.x.toml", "1.6.20~ds1"), ("config-2.0.toml", "v2.0.4"), ("config-2.1.toml", "v2.1.1")],
)
def test_a_node_as_it_should_be_has_nothing_to_mend(name: str, version: str) -> None:
    """With the configuration that we give people, for each containerd."""
    facts = with_containerd(config=config(name), version=f"containerd github.com/containerd/containerd {version} abc")
    assert bad(examine(facts, SETTINGS)) == []
    assert len(examine(facts, SETTINGS)) > 10


PROXY = GOOD.proxies[0]
OUR_PLUGIN = {"type": "snapshot", "address": str(SETTINGS.snapshotter.socket), "exports": {"root": str(SETTINGS.root)}}


@pytest.mark.parametrize(
    ("facts", "verdict", "says", "remedy"),
    [
        pytest.param(but(is_root=False), "fail", "not root", "sudo", id="not-root"),
        pytest.param(but(kernel=None), "warn", "only root", "sudo", id="kernel-unknown"),
        pytest.param(
            but(kernel=msgspec.structs.replace(KERNEL, fuse_minor=27)), "fail", "FUSE 7.27", "4.20", id="old-fuse"
        ),
        pytest.param(
            but(kernel=msgspec.structs.replace(KERNEL, fuse_minor=0, fuse_problem="gone")),
            "fail",
            "gone",
            "modprobe",
            id="no-fuse",
        ),
        pytest.param(but(dev_fuse="No such file"), "fail", "No such file", "modprobe fuse", id="no-dev-fuse"),
        pytest.param(but(kernel=NO_EROFS), "fail", "no driver can be used", "pip install", id="no-driver"),
        pytest.param(but(kernel=NO_EROFS, pyfuse3=""), "warn", "slower", "Linux 6.12", id="portable"),
        pytest.param(but(kernel=NO_EROFS, pyfuse3="libfuse3.so.3"), "fail", "libfuse3", "pip", id="broken-pyfuse3"),
        pytest.param(but(daemon_version=""), "fail", "does not run", "fastpull-node serve", id="no-daemon"),
        pytest.param(but(daemon_version="0.9"), "warn", "version 0.9", "--keep-mounts", id="old-daemon"),
        pytest.param(but(snapshotter="refused"), "fail", "refused", "--no-snapshotter", id="no-snapshotter"),
        pytest.param(
            but(proxies=(ProxyFacts(url="http://a", error="refused"), PROXY)),
            "warn",
            "refused",
            "fastpull-proxy",
            id="a-proxy",
        ),
        pytest.param(
            but(proxies=(ProxyFacts(url="http://a", error="refused"),)),
            "fail",
            "refused",
            "fastpull-proxy",
            id="no-proxy",
        ),
        pytest.param(
            but(proxies=(ProxyFacts(url="http://a", not_ready="disk full"),)),
            "fail",
            "disk full",
            "log",
            id="not-ready",
        ),
        pytest.param(but(proxies=(ProxyFacts(url="u", ahead_seconds=9.0),)), "warn", "9 s behind", "chrony", id="slow"),
        pytest.param(but(proxies=(ProxyFacts(url="u", ahead_seconds=-9e3),)), "fail", "ahead of", "chrony", id="fast"),
        pytest.param(with_root(fstype="tmpfs"), "fail", "memory", "disk", id="root-in-memory"),
        pytest.param(with_root(fstype="overlay"), "fail", "stacked", "mount a disk", id="root-on-overlay"),
        pytest.param(with_root(fstype="nfs4"), "warn", "nfs4", "local", id="root-on-network"),
        pytest.param(with_root(free_bytes=GiB), "fail", "1.0 GiB free", "make room", id="disk-full"),
        pytest.param(with_root(free_bytes=20 * GiB), "warn", "allows 50.0 GiB", "max_bytes", id="disk-small"),
        pytest.param(with_root(uid=1000), "fail", "user 1000", "chown", id="root-of-another"),
        pytest.param(with_root(mode=0o777), "fail", "0777", "chmod", id="root-open"),
        pytest.param(with_root(error="Not a directory"), "fail", "Not a directory", "settings", id="root-no-directory"),
        pytest.param(
            but(run_dir=msgspec.structs.replace(GOOD.run_dir, fstype="ext4")),
            "warn",
            "outlives",
            "/run",
            id="run-dir-on-disk",
        ),
        pytest.param(with_containerd(version=""), "fail", "not installed", "1.6", id="no-containerd"),
        pytest.param(with_containerd(version="containerd x 1.5.9 y"), "fail", "1.5.9", "1.6", id="old-containerd"),
        pytest.param(with_containerd(config=None, config_error="eh"), "warn", "eh", "sudo", id="config-unknown"),
        pytest.param(with_containerd(config={}), "fail", "no proxy plugin", "deploy/containerd", id="not-configured"),
        pytest.param(
            with_containerd(config=changed(lambda c: c["proxy_plugins"]["fastpull"].update(address="/elsewhere"))),
            "fail",
            "/elsewhere",
            "same",
            id="other-socket",
        ),
        pytest.param(
            with_containerd(config=changed(lambda c: c["proxy_plugins"]["fastpull"].update(type="content"))),
            "fail",
            "content",
            "snapshot",
            id="other-type",
        ),
        pytest.param(
            with_containerd(config=changed(lambda c: c["proxy_plugins"]["fastpull"].update(capabilities=["rebase"]))),
            "fail",
            "rebase",
            "remove",
            id="rebase",
        ),
        pytest.param(
            with_containerd(config=changed(lambda c: c["proxy_plugins"]["fastpull"].pop("exports"))),
            "warn",
            "no place",
            "exports",
            id="no-exports",
        ),
        pytest.param(
            with_containerd(config=changed(lambda c: cri(c)["containerd"].update(snapshotter="overlayfs"))),
            "fail",
            "overlayfs",
            "deploy/containerd",
            id="cri-uses-another",
        ),
        pytest.param(
            with_containerd(config=changed(lambda c: cri(c)["containerd"].update(discard_unpacked_layers=True))),
            "fail",
            "discard",
            "false",
            id="discards-layers",
        ),
        pytest.param(
            with_containerd(config=changed(lambda c: cri(c)["registry"].update(config_path=""))),
            "warn",
            "manifests",
            "hosts-toml",
            id="no-mirror",
        ),
        pytest.param(
            with_containerd(
                version="containerd x v2.1.1 y",
                config=changed(lambda c: c["plugins"].pop("io.containerd.transfer.v1.local"), "config-2.1.toml"),
            ),
            "fail",
            "nobody",
            "deploy/containerd",
            id="transfer-does-not-know-us",
        ),
        pytest.param(with_containerd(plugins="", plugins_error="eh"), "warn", "eh", "start", id="containerd-is-down"),
        pytest.param(
            with_containerd(plugins=PLUGINS.replace("-              ok", "-              error")),
            "fail",
            "error",
            "restart containerd",
            id="not-loaded",
        ),
        pytest.param(
            with_containerd(plugins=PLUGINS.replace("fastpull", "other")),
            "fail",
            "without fastpull",
            "restart",
            id="not-restarted",
        ),
    ],
)
def test_each_fault_is_named_with_its_remedy(facts: Facts, verdict: str, says: str, remedy: str) -> None:
    """And nothing else is said to be wrong but what follows from it."""
    found = [f for f in bad(examine(facts, SETTINGS)) if says in f.text]
    assert [f.verdict for f in found] == [verdict], bad(examine(facts, SETTINGS))
    assert remedy in found[0].remedy
    assert all(f.remedy for f in bad(examine(facts, SETTINGS)))


def test_another_name_of_the_plugin_is_found_by_its_socket() -> None:
    """Then `root` should have that name too."""
    made = changed(lambda c: c.update(proxy_plugins={"lazy": OUR_PLUGIN}))
    cri(made)["containerd"]["snapshotter"] = "lazy"
    facts = with_containerd(config=made, plugins=PLUGINS.replace("fastpull", "lazy"))
    assert ["is not called" in finding.text for finding in bad(examine(facts, SETTINGS))] == [True]


def test_a_cache_that_fits_the_disk_is_fine() -> None:
    settings = msgspec.structs.replace(
        SETTINGS, cache=msgspec.structs.replace(SETTINGS.cache, max_bytes=ByteSize(10 * GiB))
    )
    assert bad(examine(with_root(free_bytes=20 * GiB), settings)) == []


def test_a_node_without_cri_is_no_fault() -> None:
    made = changed(lambda c: c["plugins"].pop("io.containerd.grpc.v1.cri"))
    assert bad(examine(with_containerd(config=made), SETTINGS)) == []


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3", (1, 6)),
        ("containerd github.com/containerd/containerd/v2 v2.1.4 75cb2b71", (2, 1)),
        ("containerd containerd.io 1.7.27 05044ec0a9a75232cad458027ca83437aae3f4da", (1, 7)),
        ("something else", (0, 0)),
    ],
)
def test_versions_are_read(text: str, version: tuple[int, int]) -> None:
    assert version_of(text) == version


def test_people_get_a_line_for_each_finding_and_one_for_its_remedy() -> None:
    lines = list(report_lines(bad(examine(but(daemon_version=""), SETTINGS))))
    assert [line.split()[0] for line in lines] == ["fail", "remedy:"]
