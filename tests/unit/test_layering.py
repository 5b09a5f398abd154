"""Imports point one way: proxy, fuse_client -> image -> cache -> config."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAY_IMPORT: dict[str, set[str]] = {
    "config": set(),
    "cache": {"config"},
    "image": {"cache", "config"},
    "proxy": {"image", "cache", "config"},
    "fuse_client": {"image", "cache", "config"},
}


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level < 2, f"{path}:{node.lineno}: write the absolute name"
            if not node.level:
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_point_one_way(package: str) -> None:
    """No package knows one that stands above it."""
    allowed = MAY_IMPORT[package] | {package}
    for path in (ROOT / package).rglob("*.py"):
        for name in imported(path):
            top, _, rest = name.partition(".")
            assert top not in MAY_IMPORT, f"{path}: write fastpull.{name}"
            if top == "fastpull":
                assert rest.partition(".")[0] in allowed, f"{path}: imports {name}"


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_no_file_is_too_long(package: str) -> None:
    """A file of more than 600 lines holds more than one subject."""
    for path in (ROOT / package).rglob("*.py"):
        if "pb" not in path.parts:
            assert len(path.read_text().splitlines()) <= 600, path
