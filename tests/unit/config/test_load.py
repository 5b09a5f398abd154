"""Settings come from defaults, a TOML file and the environment, and nothing wrong gets through."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastpull.config.errors import ConfigError
from fastpull.config.load import load
from fastpull.config.node import NodeSettings
from fastpull.config.proxy import CredentialSettings, ProxySettings
from fastpull.config.units import ByteSize, GiB, MiB

PREFIX = "FASTPULL_PROXY"


def load_text(text: str, tmp_path: Path, environ: dict[str, str] | None = None) -> ProxySettings:
    file = tmp_path / "proxy.toml"
    file.write_text(text)
    return load(ProxySettings, file, prefix=PREFIX, environ=environ or {})


@pytest.mark.parametrize("settings", [ProxySettings, NodeSettings])
def test_defaults_need_no_file(settings: type[msgspec.Struct]) -> None:
    """Both programs start with no configuration at all."""
    assert load(settings, None, prefix=PREFIX, environ={}) == settings()


def test_a_file_sets_what_it_names_and_nothing_else(tmp_path: Path) -> None:
    """Nested tables, sizes, paths, and upstreams beside the built-in ones."""
    settings = load_text(
        """
        data_dir = "/data"
        [listen]
        port = 8443
        tls_certificate = "/etc/tls.crt"
        [cache]
        chunk_bytes = "2TiB"
        [upstreams."registry.example:5000"]
        url = "http://registry.example:5000"
        [upstreams."registry.example:5000".credentials]
        kind = "basic"
        username = "puller"
        password_env = "REGISTRY_PASSWORD"
        """,
        tmp_path,
    )

    assert settings.data_dir == Path("/data")
    assert (settings.listen.port, settings.listen.tls_certificate) == (8443, Path("/etc/tls.crt"))
    assert settings.cache.chunk_bytes == 2048 * GiB
    assert settings.cache.blob_bytes == ProxySettings().cache.blob_bytes
    assert settings.all_upstreams["registry.example:5000"].credentials.username == "puller"
    assert "docker.io" in settings.all_upstreams


def test_the_environment_overrides_the_file(tmp_path: Path) -> None:
    """A double underscore separates levels; numbers and sizes are read from text; other variables do not count."""
    settings = load_text(
        "[listen]\nport = 1\naddress = '10.0.0.1'",
        tmp_path,
        {
            "FASTPULL_PROXY__LISTEN__PORT": "5050",
            "FASTPULL_PROXY__LISTEN__ACCESS_LOG": "true",
            "FASTPULL_PROXY__CACHE__CHUNK_BYTES": "512 MiB",
            "FASTPULL_PROXY__DATA_DIR": "/elsewhere",
            "FASTPULL_PROXY": "ignored",
            "FASTPULL_PROXY_LISTEN__PORT": "7",
            "PATH": "/bin",
        },
    )

    assert (settings.listen.port, settings.listen.address, settings.listen.access_log) == (5050, "10.0.0.1", True)
    assert settings.cache.chunk_bytes == 512 * MiB
    assert settings.data_dir == Path("/elsewhere")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        pytest.param("[listen]\nprot = 1", "prot", id="unknown-key"),
        pytest.param("[listening]\nport = 1", "listening", id="unknown-table"),
        pytest.param("[listen]\nport = 'high'", "port", id="wrong-type"),
        pytest.param("listen = 5", "listen", id="a-value-for-a-table"),
        pytest.param("[cache]\nchunk_bytes = 'much'", "chunk_bytes", id="no-size"),
        pytest.param("[cache]\nchunk_bytes = -1", "chunk_bytes", id="negative-size"),
        pytest.param("[ingest]\ntrigger = 'never'", "trigger", id="unknown-choice"),
        pytest.param("[listen\nport = 1", "proxy.toml", id="no-toml"),
    ],
)
def test_what_is_wrong_is_named(text: str, named: str, tmp_path: Path) -> None:
    """With the file and the key, as ``ConfigError``."""
    with pytest.raises(ConfigError, match=named) as caught:
        load_text(text, tmp_path)
    assert "proxy.toml" in str(caught.value)


def test_a_file_that_can_not_be_read_is_named(tmp_path: Path) -> None:
    """Missing, a directory, or no text."""
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name in ("missing", ".", "binary"):
        with pytest.raises(ConfigError, match=str(tmp_path)):
            load(ProxySettings, tmp_path / name, prefix=PREFIX, environ={})


def test_a_variable_below_a_value_is_refused() -> None:
    """As when a level of the name is missing."""
    with pytest.raises(ConfigError, match="data_dir"):
        load(
            ProxySettings,
            None,
            prefix=PREFIX,
            environ={"FASTPULL_PROXY__DATA_DIR": "/x", "FASTPULL_PROXY__DATA_DIR__PORT": "1"},
        )


def test_secrets_do_not_show() -> None:
    """Neither in the repr of the credentials nor of anything around them."""
    settings = load(
        ProxySettings,
        None,
        prefix=PREFIX,
        environ={
            "FASTPULL_PROXY__UPSTREAMS__GHCR.IO__CREDENTIALS__KIND": "basic",
            "FASTPULL_PROXY__UPSTREAMS__GHCR.IO__CREDENTIALS__PASSWORD": "hunter2",
        },
    )

    assert settings.all_upstreams["ghcr.io"].credentials.password == "hunter2"
    assert "hunter2" not in repr(settings)
    assert "hunter2" not in f"{settings} {CredentialSettings(password='hunter2')!r}"


def test_a_wrong_secret_is_not_repeated() -> None:
    """The message names the key, never the value."""
    with pytest.raises(ConfigError) as caught:
        load(
            ProxySettings,
            None,
            prefix=PREFIX,
            environ={"FASTPULL_PROXY__UPSTREAMS__GHCR.IO__CREDENTIALS__PASSWORD__X": "hunter2"},
        )
    assert "hunter2" not in str(caught.value)


def test_settings_do_not_change() -> None:
    """They are passed around freely."""
    with pytest.raises(AttributeError):
        ProxySettings().data_dir = Path("/x")  # type: ignore[misc]  # frozen, which is the point


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1048576", MiB),
        ("20GiB", 20 * GiB),
        ("512 MB", 512_000_000),
        ("1.5 GiB", 3 * GiB // 2),
        ("64k", 64_000),
        ("64Ki", 65_536),
        (" 2 TiB ", 2048 * GiB),
        ("10B", 10),
        (17, 17),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str | int, size: int) -> None:
    """Powers of 1000 and of 1024."""
    assert size == ByteSize.parse(text)


@pytest.mark.parametrize("text", ["", "GiB", "-5", "1e9", "5 PB", "5GGB", "five", "1,5G", "5 G i B", -1, True])
def test_what_is_no_size_is_refused(text: str | int) -> None:
    """With an example of what is accepted."""
    with pytest.raises(ConfigError, match="20GiB"):
        ByteSize.parse(text)


@given(st.text(max_size=20))
def test_any_text_is_a_size_or_refused(text: str) -> None:
    """No other exception, and never below zero."""
    try:
        assert ByteSize.parse(text) >= 0
    except ConfigError:
        return
