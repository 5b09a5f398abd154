"""``hosts-toml`` shows what it changes, changes it, and then finds nothing to change."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastpull.proxy.cli.run import run


def test_a_dry_run_shows_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["hosts-toml", "--dir", str(tmp_path), "--dry-run", "--proxy", "http://proxy:5050"]) == 0

    assert '+[host."http://proxy:5050"]' in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_what_is_written_is_written_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["hosts-toml", "--dir", str(tmp_path), "--proxy", "http://proxy:5050"]

    assert run(arguments) == 0
    assert "6 files written" in capsys.readouterr().out
    assert (tmp_path / "docker.io" / "hosts.toml").exists()
    assert run(arguments) == 0
    assert "nothing to change" in capsys.readouterr().out


def test_registries_of_the_settings_are_written_with_their_address(tmp_path: Path) -> None:
    config = tmp_path / "proxy.toml"
    config.write_text('[upstreams."registry.example:5000"]\nurl = "http://registry.example:5000"\n')

    assert run(["hosts-toml", "--dir", str(tmp_path / "certs.d"), "--config", str(config)]) == 0

    text = (tmp_path / "certs.d" / "registry.example:5000" / "hosts.toml").read_text()
    assert 'server = "http://registry.example:5000"' in text
    assert '[host."http://127.0.0.1:5050"]' in text


def test_a_file_that_is_no_toml_is_named_and_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "docker.io" / "hosts.toml"
    broken.parent.mkdir()
    broken.write_text("[host")

    assert run(["hosts-toml", "--dir", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert str(broken) in error
    assert "Traceback" not in error
    assert broken.read_text() == "[host"
