"""Does containerd know us, and in the right way? Pure; the settings that it should have: ``deploy/containerd/``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import msgspec

from fastpull.config.node import NodeSettings

OLDEST = (1, 6)
_EXAMPLES = "merge deploy/containerd/config-*.toml into {config} and restart containerd"
_PLUGIN_PREFIX = "io.containerd.snapshotter.v1."


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """``fail``: images will not start, or not lazily. ``warn``: they will, but."""

    check: str
    verdict: Literal["ok", "warn", "fail"]
    text: str
    remedy: str = ""


def ok(check: str, text: str) -> Finding:
    return Finding(check=check, verdict="ok", text=text)


def warn(check: str, text: str, remedy: str) -> Finding:
    return Finding(check=check, verdict="warn", text=text, remedy=remedy)


def fail(check: str, text: str, remedy: str) -> Finding:
    return Finding(check=check, verdict="fail", text=text, remedy=remedy)


class ContainerdFacts(msgspec.Struct, frozen=True, kw_only=True):
    version: str = ""  # what it says of itself; empty = it is not installed
    config_path: str = "/etc/containerd/config.toml"
    config: dict[str, Any] | None = None  # as it reads it, defaults included; None = it could not be had
    config_error: str = ""
    plugins: str = ""  # `ctr plugins ls`; empty = it does not answer
    plugins_error: str = ""


def version_of(text: str) -> tuple[int, int]:
    """``containerd github.com/containerd/containerd 1.6.20~ds1 …`` → (1, 6); (0, 0) where there is none."""
    found = re.search(r"\bv?(\d+)\.(\d+)\.\d", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def checks(facts: ContainerdFacts, settings: NodeSettings) -> Iterator[Finding]:
    """All findings about containerd."""
    remedy = _EXAMPLES.format(config=facts.config_path)
    if not facts.version:
        yield fail("containerd", "is not installed, or not on PATH", "install containerd 1.6 or newer")
        return
    version = version_of(facts.version)
    if version < OLDEST:
        yield fail("containerd", facts.version, "use containerd 1.6 or newer")
    else:
        yield ok("containerd", f"version {version[0]}.{version[1]}")
    if facts.config is None:
        yield warn("containerd", f"can not tell its configuration: {facts.config_error}", "sudo fastpull-node doctor")
        return
    name, plugin = _our_plugin(facts.config, settings)
    if plugin is None:
        yield fail("containerd", f"{facts.config_path} has no proxy plugin at {settings.snapshotter.socket}", remedy)
        return
    yield from _plugin(name, plugin, settings)
    yield from _cri(name, facts.config, remedy)
    if version >= (2, 1):
        yield from _transfer(name, facts.config, remedy)
    yield from _loaded(name, facts)


def _our_plugin(config: Mapping[str, Any], settings: NodeSettings) -> tuple[str, dict[str, Any] | None]:
    """The plugin that has our socket, or else our name."""
    plugins = config.get("proxy_plugins") or {}
    for name, plugin in plugins.items():
        if plugin.get("address") == str(settings.snapshotter.socket):
            return name, plugin
    name = settings.root.name.removeprefix(_PLUGIN_PREFIX)
    return name, plugins.get(name)


def _plugin(name: str, plugin: Mapping[str, Any], settings: NodeSettings) -> Iterator[Finding]:
    address = plugin.get("address")
    if address != str(settings.snapshotter.socket):
        yield fail(
            "containerd",
            f"its plugin {name} looks for us at {address}, we listen on {settings.snapshotter.socket}",
            "make [snapshotter] socket and the plugin's address the same",
        )
    elif plugin.get("type") != "snapshot":
        yield fail("containerd", f"its plugin {name} has the type {plugin.get('type')!r}", 'write type = "snapshot"')
    else:
        yield ok("containerd", f"knows us as {name}")
    if "rebase" in (plugin.get("capabilities") or ()):
        yield fail(
            "containerd",
            f'its plugin {name} has capabilities = ["rebase"]: pulled images have no snapshots',
            "remove the line",
        )
    exported = (plugin.get("exports") or {}).get("root")
    if exported != str(settings.root):
        yield warn(
            "containerd",
            f"kubelet would look for the disk usage of images at {exported or 'no place'}, they are at {settings.root}",
            f'write exports = {{ root = "{settings.root}" }} into the plugin {name}',
        )
    if settings.root.name != _PLUGIN_PREFIX + name:
        yield warn(
            "containerd",
            f"{settings.root} is not called {_PLUGIN_PREFIX}{name}: kubelet's disk statistics of older 1.x look there",
            "name `root` after the plugin",
        )


def _cri(name: str, config: Mapping[str, Any], remedy: str) -> Iterator[Finding]:
    plugins = config.get("plugins") or {}
    images = plugins.get("io.containerd.cri.v1.images")
    if images is None:
        section = plugins.get("io.containerd.grpc.v1.cri")
        if section is None:
            yield ok("cri", "is not used")
            return
        containerd, registry = section.get("containerd") or {}, section.get("registry") or {}
    else:
        containerd, registry = images, images.get("registry") or {}
    snapshotter = containerd.get("snapshotter")
    if snapshotter == name:
        yield ok("cri", f"uses {name}")
    else:
        yield fail("cri", f"uses the snapshotter {snapshotter}: no pod would start lazily", remedy)
    if containerd.get("discard_unpacked_layers"):
        yield fail(
            "cri",
            "discard_unpacked_layers is set: layers that were not served lazily are lost when they are needed again",
            "set discard_unpacked_layers = false",
        )
    if not registry.get("config_path"):
        yield warn(
            "cri",
            "manifests do not come through the proxy, which then learns of an image only when its files are asked for",
            "set config_path, and run: fastpull-proxy hosts-toml --dir /etc/containerd/certs.d",
        )


def _transfer(name: str, config: Mapping[str, Any], remedy: str) -> Iterator[Finding]:
    """containerd 2.1: pulls fail with "no unpack platforms defined" without an entry."""
    transfer = (config.get("plugins") or {}).get("io.containerd.transfer.v1.local") or {}
    known = [entry.get("snapshotter") for entry in transfer.get("unpack_config") or ()]
    if name in known:
        yield ok("transfer", f"unpacks for {name}")
    else:
        yield fail("transfer", f"the transfer service unpacks for {', '.join(map(str, known)) or 'nobody'}", remedy)


def _loaded(name: str, facts: ContainerdFacts) -> Iterator[Finding]:
    if not facts.plugins:
        yield warn("containerd", f"does not answer: {facts.plugins_error or 'no plugins listed'}", "start containerd")
        return
    for line in facts.plugins.splitlines():
        words = line.split()
        if len(words) >= 4 and words[1] == name and words[0].startswith("io.containerd.snapshotter"):
            if words[-1] == "ok":
                yield ok("containerd", f"has loaded {name}")
            else:
                yield fail(
                    "containerd", f"says {words[-1]} of {name}", "start fastpull-node serve, then restart containerd"
                )
            return
    yield fail("containerd", f"runs without {name}", "restart it: it reads its configuration when it starts")
