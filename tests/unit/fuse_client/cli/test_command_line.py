"""``fastpull-node``: what it prints and how it ends."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from fakes.layers import Content, directory, layers, symlink
from fakes.node_api import FakeProxy

from fastpull.fuse_client.cli import run as run_module
from fastpull.fuse_client.cli.ls import find, printable
from fastpull.fuse_client.cli.run import run
from fastpull.fuse_client.cli.status import bytes_text, status_lines
from fastpull.fuse_client.drivers.probe import KernelFeatures
from fastpull.fuse_client.status import CacheStatus, ChainStatus, FetchStatus, NodeStatus, ProxyStatus
from fastpull.image.chain import build_chain
from fastpull.image.erofs.reader import Bootstrap

COMMANDS = ["serve", "mount", "umount", "ls", "status", "scrub", "stop"]


@pytest.fixture(autouse=True)
def _own_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTPULL_NODE__RUN_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("FASTPULL_NODE__ROOT", str(tmp_path / "root"))


def exit_code(*arguments: str) -> int:
    try:
        return run(arguments)
    except SystemExit as exc:
        return int(exc.code or 0)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """``--help`` says what a command does, not only its options."""
    assert exit_code(command, "--help") == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) > 6
    assert "--config" in out


@pytest.mark.parametrize(
    "arguments",
    [[], ["dance"], ["mount"], ["mount", "image"], ["stop", "--force", "--keep-mounts"], ["serve", "--log-level", "x"]],
)
def test_wrong_usage_ends_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """And says where help is."""
    assert exit_code(*arguments) == 2
    assert "--help" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "says"),
    [("no toml", "no.toml"), ('roof = "/x"', "roof"), ('[cache]\nmax_bytes = "many"', "many")],
)
def test_wrong_settings_end_with_2(content: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The message names the key, the remedy the file that has them all."""
    config = tmp_path / "no.toml"
    config.write_text(content)
    assert exit_code("status", "--config", str(config)) == 2
    err = capsys.readouterr().err
    assert says in err
    assert "deploy/examples/node.toml" in err


@pytest.mark.parametrize("command", ["status", "stop"])
def test_without_a_daemon_they_say_so(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line with the cause, one with the remedy, no traceback."""
    assert exit_code(command) == 1
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 2
    assert "no daemon listens" in err[0]
    assert "fastpull-node serve" in err[1]


@pytest.mark.parametrize("command", [["mount", "image", "/x"], ["umount", "/x"], ["serve"]])
def test_what_needs_root_says_so(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is done."""
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert exit_code(*command) == 1
    assert "root" in capsys.readouterr().err or "sudo" in capsys.readouterr().err


def test_ctrl_c_ends_quietly(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """130, as shells expect it."""

    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(run_module, "_dispatch", interrupted)
    assert exit_code("status") == 130
    assert "interrupted" in capsys.readouterr().err


# -- ls --------------------------------------------------------------------------------------------------


def tree() -> tuple[Content, list]:  # type: ignore[type-arg]
    content = Content()
    entries = [
        directory(b"usr"),
        directory(b"usr/bin"),
        content.file(b"usr/bin/tool", b"x" * 5000, mode=0o4755, uid=7, gid=8, mtime_ns=1_600_000_000_123456789),
        symlink(b"bin", b"usr/bin"),
        symlink(b"usr/loop", b"loop"),
        symlink(b"usr/up", b"../../../etc"),
        directory(b"etc"),
        content.file(b"etc/\x1b[31mred", b""),
        content.file(b"etc/\xff", b"y"),
    ]
    return content, entries


@pytest.fixture
def proxy() -> FakeProxy:
    content, entries = tree()
    proxy = FakeProxy()
    proxy.add_image("demo", layers(entries), content.chunks)
    return proxy


def test_ls_lists_an_image(proxy: FakeProxy, capsys: pytest.CaptureFixture[str]) -> None:
    """Names, or everything; files, directories, and through symlinks; from the index alone."""
    with proxy.in_thread():

        def ls(*arguments: str) -> str:
            assert exit_code("ls", "--proxy", proxy.url, *arguments) == 0
            return capsys.readouterr().out

        assert ls("demo") == "bin\netc\nusr\n"
        assert ls("demo", "/bin") == "tool\n"
        assert ls("-l", "demo", "bin/tool") == "-rwsr-xr-x 1 7 8 5000 2020-09-13 12:26 tool\n"
        assert "lrwxrwxrwx" in ls("-l", "demo", "/")
        (tool,) = json.loads(ls("--json", "demo", "usr/bin"))
        assert tool == {
            "name": "tool",
            "type": "file",
            "mode": "4755",
            "uid": 7,
            "gid": 8,
            "size": 5000,
            "mtime_ns": 1_600_000_000_123456789,
            "nlink": 1,
            "target": "",
            "device": "",
        }
    assert not proxy.requests


def test_ls_says_what_is_missing(proxy: FakeProxy, capsys: pytest.CaptureFixture[str]) -> None:
    """An image, or a path in it."""
    with proxy.in_thread():
        assert exit_code("ls", "--proxy", proxy.url, "other") == 1
        assert "no such image" in capsys.readouterr().err
        assert exit_code("ls", "--proxy", proxy.url, "demo", "/nowhere") == 1
        assert "demo has no /nowhere" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("path", "found"),
    [
        (b"/", True),
        (b"", True),
        (b"bin/tool", True),
        (b"/usr/./bin/../bin//tool", True),
        (b"usr/up", True),
        (b"../../usr", True),
        (b"usr/loop", False),
        (b"usr/bin/tool/x", False),
        (b"none", False),
    ],
)
def test_paths_are_found_inside_of_the_image(path: bytes, found: bool) -> None:
    """Symlinks lead nowhere else, loops end."""
    with Bootstrap.open(build_chain(layers(tree()[1])).bootstrap) as bootstrap:
        assert (find(bootstrap, path) is not None) is found


def test_names_can_not_move_the_cursor() -> None:
    """Control characters of an image's names are shown, not sent."""
    assert printable("\x1b[31mred\n") == "\\x1b[31mred\\n"
    assert printable("schön") == "schön"


# -- status ----------------------------------------------------------------------------------------------


def test_status_shows_what_matters() -> None:
    """What is wrong stands out."""
    report = NodeStatus(
        version="1.0",
        pid=7,
        root="/r",
        driver="erofs",
        driver_reason="it works",
        kernel=KernelFeatures(
            release="6.8",
            fuse_minor=40,
            fuse_resend=False,
            erofs_file_backed=False,
            erofs_directio=False,
            erofs_loop=True,
        ),
        holder="holder (pid 9)",
        holder_is_up=False,
        snapshotter="",
        chains=(
            ChainStatus(
                chain_id="sha256:" + "ab" * 32,
                path="/p",
                users=("containerd",),
                chunks=10,
                content_bytes=1 << 20,
                local_chunks=5,
                local_bytes=1 << 19,
            ),
        ),
        cache=CacheStatus(chunks=5, live_bytes=1 << 30, file_bytes=0, quota_bytes=50 << 30, failure="disk full"),
        proxies=(ProxyStatus(url="http://p", is_up=False, last_error="refused"),),
        fetch=FetchStatus(
            queued_chunks=0,
            requests=3,
            received_bytes=10,
            content_bytes=30,
            retries=0,
            failed_reads=0,
            waited_seconds=1.5,
        ),
    )
    text = "\n".join(status_lines(report))

    for part in ("nobody", "DOWN: refused", "NOT STORING: disk full", "1.0 GiB of 50.0 GiB", "(50 %)", "no resend"):
        assert part in text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1536, "1.5 KiB"), (5 << 20, "5.0 MiB"), (3 << 40, "3072.0 GiB")]
)
def test_sizes_are_for_people(count: int, text: str) -> None:
    """In powers of 1024, as the settings are written."""
    assert bytes_text(count) == text


def test_status_does_not_wait_for_what_it_does_not_need() -> None:
    """Importing the command line loads neither gRPC nor the event loop's HTTP."""
    import subprocess

    code = "import sys, fastpull.fuse_client.cli.status; print([m for m in ('grpc', 'aiohttp') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
