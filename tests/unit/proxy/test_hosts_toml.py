"""hosts.toml files for containerd."""

import tomllib
from pathlib import Path

import pytest

from fastpull.proxy.hosts_toml import write_hosts

PROXY = "http://10.0.0.5:5050"


def test_each_registry_gets_the_proxy_in_front_and_itself_behind(tmp_path: Path) -> None:
    changes = write_hosts(tmp_path, PROXY, ["docker.io", "ghcr.io", "registry.example:5000"], False)

    assert len(changes) == 3
    hub = tomllib.loads((tmp_path / "docker.io" / "hosts.toml").read_text())
    assert hub["server"] == "https://registry-1.docker.io"
    assert hub["host"] == {PROXY: {"capabilities": ["pull", "resolve"], "dial_timeout": "1s"}}
    other = tomllib.loads((tmp_path / "registry.example:5000" / "hosts.toml").read_text())
    assert other["server"] == "https://registry.example:5000"


def test_a_registry_may_be_elsewhere(tmp_path: Path) -> None:
    write_hosts(tmp_path, PROXY, {"registry.example": "http://10.0.0.9:5000"}, False)
    assert tomllib.loads((tmp_path / "registry.example" / "hosts.toml").read_text())["server"] == "http://10.0.0.9:5000"


def test_twice_is_once(tmp_path: Path) -> None:
    write_hosts(tmp_path, PROXY, ["ghcr.io"], False)
    assert write_hosts(tmp_path, PROXY, ["ghcr.io"], False) == []


def test_a_dry_run_shows_and_writes_nothing(tmp_path: Path) -> None:
    [change] = write_hosts(tmp_path, PROXY, ["ghcr.io"], True)
    assert '+[host."http://10.0.0.5:5050"]' in str(change).splitlines()
    assert list(tmp_path.iterdir()) == []


def test_a_new_address_replaces_the_old(tmp_path: Path) -> None:
    write_hosts(tmp_path, PROXY, ["ghcr.io"], False)
    [change] = write_hosts(tmp_path, "https://proxy.example/", ["ghcr.io"], False)
    assert list(tomllib.loads(change.after)["host"]) == ["https://proxy.example"]
    assert '-[host."http://10.0.0.5:5050"]' in str(change).splitlines()


THEIRS = """\
# written by hand
server = "https://ghcr.io"

[host."https://mirror.example"]
  capabilities = ["pull"]
  [host."https://mirror.example".header]
    x-key = "[1]"
"""


def test_what_others_wrote_stays_behind_ours(tmp_path: Path) -> None:
    path = tmp_path / "ghcr.io" / "hosts.toml"
    path.parent.mkdir()
    path.write_text(THEIRS)
    for _ in range(2):
        write_hosts(tmp_path, PROXY, ["ghcr.io"], False)
        assert list(tomllib.loads(path.read_text())["host"]) == [PROXY, "https://mirror.example"]
    assert all(line in path.read_text().splitlines() for line in THEIRS.splitlines())


@pytest.mark.parametrize("text", ["server = ", "[host", "\x00"])
def test_a_file_that_is_not_toml_is_left_alone(text: str, tmp_path: Path) -> None:
    path = tmp_path / "ghcr.io" / "hosts.toml"
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(OSError, match="not TOML"):
        write_hosts(tmp_path, PROXY, ["docker.io", "ghcr.io"], False)
    assert path.read_text() == text
    assert not (tmp_path / "docker.io").exists()
