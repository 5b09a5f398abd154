"""The proxy as people run it: a process, a registry, and the command line."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.fault_rows import Seen
from harness.oci import Image, Layer, OciLayout, directory, file
from harness.processes import OwnedProcess, free_port
from harness.proxy import Proxy
from harness.registry import Registry

from fastpull.cache.digest import Digest

FASTPULL = (sys.executable, "-P", "-m", "fastpull.proxy")


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with Registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> OciLayout:
    return OciLayout(tmp_path_factory.mktemp("layout"))


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory, registry: Registry) -> Iterator[Proxy]:
    """For tests that leave it running; what they push has names and contents of its own."""
    with Proxy(tmp_path_factory.mktemp("proxy"), [registry]) as running:
        yield running


@pytest.fixture
def own_proxy(tmp_path: Path, registry: Registry) -> Iterator[Proxy]:
    """For tests that kill it, or count what it holds."""
    with Proxy(tmp_path / "proxy", [registry]) as running:
        yield running


def command(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*FASTPULL, *args], capture_output=True, text=True, timeout=170, check=False)


def warm(proxy: Proxy, image: str) -> dict[str, Any]:
    done = command("warm", image, "--proxy", proxy.url, "--json")
    assert done.stdout, done.stderr
    return {**json.loads(done.stdout), "exit": done.returncode}


def wheels(seed: int, count: int = 30) -> list[Any]:
    """Files like those of packages: each its own bytes, half of them compressible."""
    source = random.Random(seed)
    return [
        directory("site"),
        *(file(f"site/{seed}-{n}.so", source.randbytes(30_000) + bytes(30_000), mode=0o755) for n in range(count)),
    ]


def push(registry: Registry, layout: OciLayout, name: str, *layers: Layer, **kwargs: Any) -> tuple[str, Image]:
    image = layout.add_image(name.replace(":", "-"), layers, **kwargs)
    return registry.push(image, name), image


def test_an_image_becomes_warm_and_then_costs_nothing(proxy: Proxy, registry: Registry, layout: OciLayout) -> None:
    """The figures are those of the image; the second warm asks the registry for no blob."""
    low, high = layout.add_layer(wheels(1)), layout.add_layer(wheels(2), compression="zstd")
    name, image = push(registry, layout, "twice:1", low, high, low)

    with registry.watched() as first_requests:
        first = warm(proxy, name)
    with registry.watched() as second_requests:
        second = warm(proxy, name)

    assert (first["exit"], first["stage"]) == (0, "done")
    assert (first["layers"], first["files"], first["content_bytes"]) == (3, 90, 90 * 60_000)
    assert first["new_bytes"] == 60 * 60_000
    assert first["manifest_digest"] == image.manifest_digest
    assert first["chain_id"] == str(image.chain_ids[-1])
    blobs = [request.blob for request in first_requests if request.blob is not None]
    assert len(blobs) == len(set(blobs)) == 3, "each blob once: two layers and the config"
    assert (second["exit"], second["new_bytes"]) == (0, 0)
    assert [request.blob for request in second_requests if request.blob is not None] == []


def test_without_a_terminal_there_are_plain_lines(proxy: Proxy, registry: Registry, layout: OciLayout) -> None:
    name, _ = push(registry, layout, "lines:1", layout.add_layer(wheels(3)))

    done = command("warm", name, "--proxy", proxy.url)

    assert done.returncode == 0
    assert "layers: 1" in done.stdout.splitlines()
    assert "files: 30" in done.stdout.splitlines()
    assert "\x1b" not in done.stdout + done.stderr
    assert "30 files" in done.stderr


def test_the_same_files_in_other_layers_add_next_to_nothing(
    proxy: Proxy, registry: Registry, layout: OciLayout
) -> None:
    """Two images with the same packages, cut into layers differently and compressed differently."""
    one, _ = push(registry, layout, "dedup:1", layout.add_layer(wheels(4)), layout.add_layer(wheels(5)))
    two, _ = push(
        registry,
        layout,
        "dedup:2",
        layout.add_layer([file("first", b"x")]),
        layout.add_layer([*wheels(5), *wheels(4)[1:]], compression="zstd"),
    )

    warm(proxy, one)
    before = proxy.get("/v1/status")["chunks"]["live_bytes"]
    second = warm(proxy, two)
    after = proxy.get("/v1/status")["chunks"]["live_bytes"]

    assert second["content_bytes"] == 60 * 60_000 + 1
    assert second["new_bytes"] < 0.03 * second["content_bytes"]
    assert after - before < 0.03 * before


@pytest.mark.fault(
    "proxy: killed at rest",
    done="kill -9, start",
    promised="the same chains, the same bootstraps, no download",
)
def test_after_a_kill_everything_is_still_there(
    own_proxy: Proxy, registry: Registry, layout: OciLayout, seen: Seen
) -> None:
    name, image = push(registry, layout, "killed:1", layout.add_layer(wheels(6)))
    warm(own_proxy, name)
    state = own_proxy.get(f"/v1/chains/{image.chain_ids[-1]}")

    own_proxy.process.kill(signal.SIGKILL)
    own_proxy.start()

    assert own_proxy.get(f"/v1/chains/{image.chain_ids[-1]}") == state
    bootstrap = fetch(f"{own_proxy.url}/v1/chains/{image.chain_ids[-1]}/bootstrap")
    assert str(Digest.of(bootstrap)) == state["bootstrap_digest"]
    with registry.watched() as requests:
        assert warm(own_proxy, name)["new_bytes"] == 0
    assert [request.blob for request in requests if request.blob is not None] == []
    seen("0 bytes downloaded again")


@pytest.mark.fault(
    "proxy: killed while it warms an image",
    done="5 times kill -9 at random moments",
    promised="the image is ready in the end",
)
def test_killed_again_and_again_while_it_works_it_gets_there(
    own_proxy: Proxy, registry: Registry, layout: OciLayout, seen: Seen
) -> None:
    name, _ = push(registry, layout, "survivor:1", *(layout.add_layer(wheels(100 + n, 60)) for n in range(4)))
    source = random.Random(7)

    for _ in range(5):
        client = OwnedProcess([*FASTPULL, "warm", name, "--proxy", own_proxy.url], own_proxy.root / "warm.log").start()
        with contextlib.suppress(subprocess.TimeoutExpired):
            client.wait(source.uniform(0.05, 1.0))
        own_proxy.process.kill(signal.SIGKILL)
        own_proxy.start()
        client.stop()

    done = warm(own_proxy, name)
    assert (done["exit"], done["files"]) == (0, 240)
    assert len(fetch(f"{own_proxy.url}/v1/chains/{done['chain_id']}/device")) > 240 * 60_000
    seen("5 kills, 240 of 240 files")


def test_a_layer_of_unknown_kind_fails_with_its_reason_and_is_still_served(
    proxy: Proxy, registry: Registry, layout: OciLayout
) -> None:
    """Such an image is pulled as always."""
    good = layout.add_layer(wheels(8))
    strange = Layer(good.digest, good.size, good.diff_id, "application/vnd.example.layer.v1.rot13")
    name, _ = push(registry, layout, "strange:1", strange)

    done = command("warm", name, "--proxy", proxy.url)

    assert done.returncode == 1
    assert "rot13" in done.stderr
    assert "remedy:" in done.stderr
    assert "Traceback" not in done.stderr
    blob = fetch(f"{proxy.url}/v2/strange/blobs/{good.digest}?ns={registry.host}")
    assert str(Digest.of(blob)) == good.digest


@pytest.mark.fault(
    "hostile input: a layer that is not what the config says",
    done="a wrong diffID",
    promised="nothing of it is ever visible",
)
def test_a_layer_that_is_not_what_the_config_says_is_never_visible(
    proxy: Proxy, registry: Registry, layout: OciLayout
) -> None:
    lie = "sha256:" + "1" * 64
    name, _ = push(registry, layout, "liar:1", layout.add_layer(wheels(9)), diff_ids=[lie])

    done = warm(proxy, name)

    assert (done["exit"], done["stage"]) == (1, "failed")
    assert proxy.get(f"/v1/chains/{lie}")["state"] == "failed"
    assert proxy.status_of(f"/v1/chains/{lie}/bootstrap") == 422


def test_a_registry_that_is_away_is_named_with_what_to_do(tmp_path: Path) -> None:
    gone = Registry(tmp_path / "registry")
    with Proxy(tmp_path / "proxy", [gone]) as proxy:
        done = command("warm", f"{gone.host}/app:1", "--proxy", proxy.url)

    assert done.returncode == 1
    assert gone.host in done.stderr
    assert "Traceback" not in done.stderr


def test_a_pull_through_v2_makes_the_image_ready_by_itself(proxy: Proxy, registry: Registry, layout: OciLayout) -> None:
    """What containerd does: the manifest, the config, then a node asks for the chain."""
    name, image = push(registry, layout, "pulled:1", layout.add_layer(wheels(10)))
    with registry.watched() as requests:
        fetch(f"{proxy.url}/v2/pulled/manifests/{image.manifest_digest}?ns={registry.host}")
        state = proxy.get(f"/v1/chains/{image.chain_ids[-1]}?wait=60")
        fetch(f"{proxy.url}/v2/pulled/blobs/{image.layers[0].digest}?ns={registry.host}")

    assert state["state"] == "ready"
    blobs = [request.blob for request in requests if request.blob is not None]
    assert blobs.count(image.layers[0].digest) == 1, "downloaded once for both purposes"
    assert name in json.dumps(proxy.get("/v1/images")) or image.manifest_digest in json.dumps(proxy.get("/v1/images"))


def test_a_purged_image_is_gone_and_can_come_back(own_proxy: Proxy, registry: Registry, layout: OciLayout) -> None:
    name, _ = push(registry, layout, "purged:1", layout.add_layer(wheels(11)))
    warm(own_proxy, name)

    done = command("purge", name, "--proxy", own_proxy.url)

    assert done.returncode == 0, done.stderr
    assert "1 images, 1 layers" in done.stdout
    assert own_proxy.get("/v1/status")["chunks"]["entries"] == 0
    assert command("purge", name, "--proxy", own_proxy.url).returncode == 1
    assert warm(own_proxy, name)["new_bytes"] == 30 * 60_000


@pytest.mark.fault(
    "proxy: store smaller than its images",
    done="two images in a store for one",
    promised="the quota is kept; what was evicted comes back when it is read",
)
def test_in_a_store_that_holds_one_of_two_images_the_other_comes_back_on_demand(
    tmp_path: Path, registry: Registry, layout: OciLayout
) -> None:
    """Evicted means slower, not gone."""
    one, image = push(registry, layout, "evicted:1", layout.add_layer(wheels(20)))
    two, _ = push(registry, layout, "evicting:1", layout.add_layer(wheels(21)))
    with Proxy(tmp_path / "proxy", [registry], extra_settings='[cache]\nchunk_bytes = "950KiB"\n') as small:
        assert warm(small, one)["exit"] == 0
        device = f"{small.url}/v1/chains/{image.chain_ids[-1]}/device"
        content = fetch(device)
        assert warm(small, two)["exit"] == 0
        status = small.get("/v1/status")["chunks"]

        assert status["live_bytes"] <= status["quota_bytes"]
        assert fetch(device) == content
        assert warm(small, one)["exit"] == 0


def test_an_image_larger_than_the_store_says_so(tmp_path: Path, registry: Registry, layout: OciLayout) -> None:
    name, _ = push(registry, layout, "large:1", layout.add_layer(wheels(22, 60)))
    with Proxy(tmp_path / "proxy", [registry], extra_settings='[cache]\nchunk_bytes = "1MiB"\n') as tiny:
        done = command("warm", name, "--proxy", tiny.url)

    assert done.returncode == 1
    assert "the quota is" in done.stderr
    assert "cache.chunk_bytes" in done.stderr


def test_a_plan_travels_through_a_file(proxy: Proxy, registry: Registry, layout: OciLayout, tmp_path: Path) -> None:
    name, _ = push(registry, layout, "planned:1", layout.add_layer(wheels(12)))
    warm(proxy, name)
    exported = tmp_path / "plan.json"

    assert command("plan", "export", name, str(exported), "--proxy", proxy.url).returncode == 0
    imported = command("plan", "import", name, str(exported), "--proxy", proxy.url)

    assert imported.returncode == 0, imported.stderr
    assert "plan" in command("plan", "show", name, "--proxy", proxy.url).stdout
    assert command("plan", "drop", name, "--proxy", proxy.url).returncode == 0
    exported.write_text("no plan")
    refused = command("plan", "import", name, str(exported), "--proxy", proxy.url)
    assert refused.returncode == 1
    assert "remedy:" in refused.stderr


def test_status_and_images_are_for_people_and_programs(proxy: Proxy, registry: Registry, layout: OciLayout) -> None:
    name, _ = push(registry, layout, "listed:1", layout.add_layer(wheels(13)))
    warm(proxy, name)

    assert "ready" in command("status", "--proxy", proxy.url).stdout
    assert json.loads(command("status", "--json", "--proxy", proxy.url).stdout)["images"] >= 1
    assert name in command("images", "--proxy", proxy.url).stdout
    assert json.loads(command("images", "--json", "--proxy", proxy.url).stdout)["images"][0]["names"] == [name]


def test_it_ends_when_it_is_told_to(own_proxy: Proxy) -> None:
    own_proxy.process.kill(signal.SIGTERM)

    assert own_proxy.process.wait() == 0
    assert "listening on" in own_proxy.process.log_tail()
    assert "stopped" in own_proxy.process.log_tail()


def test_a_second_proxy_on_the_same_data_or_port_says_so(proxy: Proxy) -> None:
    same_data = command("serve", "--data-dir", str(proxy.root / "data"), "--listen", f"127.0.0.1:{free_port()}")
    same_port = command("serve", "--data-dir", str(proxy.root / "other"), "--listen", f"127.0.0.1:{proxy.port}")

    assert (same_data.returncode, same_port.returncode) == (1, 1)
    assert f"pid {proxy.process.pid}" in same_data.stderr
    assert "already in use" in same_port.stderr
    for done in (same_data, same_port):
        assert "remedy:" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_data_directory_that_can_not_be_written_is_named_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    done = command("serve", "--data-dir", str(tmp_path / "file" / "data"))

    assert done.returncode == 1
    assert "--data-dir" in done.stderr
    assert "Traceback" not in done.stderr


def fetch(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=120) as answer:
        return bytes(answer.read())
