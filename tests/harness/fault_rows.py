"""The fault matrix: tests that are rows of README's table.

    @pytest.mark.fault("node daemon: kill -9 while containers read", done="...", promised="...")
    def test_...(seen: Seen) -> None:
        ...
        seen(f"longest read {longest:.1f} s, no error")

The name is a row's key, and the part before its colon groups the rows. Names, what is done and what is promised are
literals: ``tools/fault_table.py`` reads them from the source. ``--fault-table FILE`` runs the marked tests alone and
writes what they saw; several items of one test (parameters) are one row.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

Seen = Callable[[str], None]

_SEEN = pytest.StashKey[list[str]]()
_ROWS = pytest.StashKey[dict[str, dict[str, list[str]]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fault-table", metavar="FILE", help="run the tests marked fault, and write what they saw to FILE"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "fault(name, done, promised): a row of README's fault matrix")
    config.stash[_ROWS] = {}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--fault-table"):
        others = [item for item in items if item.get_closest_marker("fault") is None]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item.get_closest_marker("fault") is not None]


@pytest.fixture
def seen(request: pytest.FixtureRequest) -> Seen:
    """Record one short clause of what this test measured, for its row: figures first."""
    return request.node.stash.setdefault(_SEEN, []).append


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    mark = item.get_closest_marker("fault")
    if mark is not None and (report.when == "call" or not report.passed):
        row = item.config.stash[_ROWS].setdefault(mark.args[0], {"outcomes": [], "seen": []})
        row["outcomes"].append(report.outcome)
        row["seen"] += item.stash.get(_SEEN, []) if report.when == "call" else []
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    target = session.config.getoption("--fault-table")
    if target:
        Path(target).write_text(json.dumps(session.config.stash[_ROWS], indent=1) + "\n")
