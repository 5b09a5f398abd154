"""What can be typed, and what comes of mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastpull.config.proxy import ListenSettings, ProxySettings
from fastpull.proxy.cli.errors import UsageError
from fastpull.proxy.cli.run import own_url, parse_listen, run


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:5050", ("127.0.0.1", 5050)),
        ("[::1]:80", ("::1", 80)),
        (":5050", ("0.0.0.0", 5050)),
        ("localhost:0", ("localhost", 0)),
    ],
)
def test_a_listen_address_is_read(text: str, expected: tuple[str, int]) -> None:
    assert parse_listen(text) == expected


@pytest.mark.parametrize("text", ["", "5050", "host:", "host:http", "host:70000", "::1:5050", "host:-1"])
def test_a_wrong_listen_address_is_a_usage_error_that_shows_a_right_one(text: str) -> None:
    with pytest.raises(UsageError) as failure:
        parse_listen(text)

    assert failure.value.remedy


@pytest.mark.parametrize(
    ("listen", "url"),
    [
        (ListenSettings(), "http://127.0.0.1:5050"),
        (ListenSettings(address="0.0.0.0", port=80), "http://127.0.0.1:80"),
        (ListenSettings(address="::", port=80), "http://[::1]:80"),
        (ListenSettings(tls_certificate=Path("crt")), "https://127.0.0.1:5050"),
    ],
)
def test_a_command_finds_the_proxy_of_its_own_machine(listen: ListenSettings, url: str) -> None:
    assert own_url(ProxySettings(listen=listen)) == url


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["warm"],
        ["warm", "image", "--colour"],
        ["plan", "show"],
        ["plan", "paint", "image"],
        ["purge"],
        ["scrub", "all"],
    ],
)
def test_wrong_usage_exits_with_2_and_points_to_the_help(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        run(arguments)

    assert end.value.code == 2
    assert "--help" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["serve", "warm", "status", "images", "purge", "scrub", "hosts-toml", "plan"])
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        run([command, "--help"])

    assert end.value.code == 0
    assert len(capsys.readouterr().out) > 200


def test_an_absent_proxy_is_one_line_with_a_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    code = run(["warm", "debian", "--proxy", "http://127.0.0.1:1"])

    error = capsys.readouterr().err
    assert code == 1
    assert "no proxy answers at http://127.0.0.1:1" in error
    assert "fastpull-proxy serve" in error
    assert "Traceback" not in error


@pytest.mark.parametrize("url", ["ftp://proxy", "http://", "http://proxy:port"])
def test_an_address_that_is_none_is_wrong_usage(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["status", "--proxy", url]) == 2
    assert "remedy" in capsys.readouterr().err


def test_a_wrong_key_in_the_settings_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "proxy.toml"
    config.write_text("[listen]\nprot = 80\n")

    assert run(["serve", "--config", str(config)]) == 2
    error = capsys.readouterr().err
    assert "prot" in error
    assert str(config) in error


@pytest.mark.parametrize("workers", ["-1", "65", "many"])
def test_a_number_of_workers_that_is_none_is_refused(
    workers: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FASTPULL_PROXY__LISTEN__WORKERS", workers)

    assert run(["serve"]) == 2
    assert "workers" in capsys.readouterr().err
