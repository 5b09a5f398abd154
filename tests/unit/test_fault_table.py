"""README's fault matrix says what the tests do, no more and no less."""

from __future__ import annotations

from pathlib import Path

import pytest
from tools.fault_table import NOT_RUN, TESTS, TableError, cells, declared, render, split, summary

MARKED = """
@pytest.mark.fault({name!r}, done="kill -9 | again", promised="nothing " "lost")
def test_it() -> None: ...
"""


def test_the_readme_has_the_rows_that_the_tests_declare() -> None:
    """Each marked test is a row, each row a marked test, and each says what was seen (`make faults` writes it)."""
    _, table, _ = split((TESTS.parent / "README.md").read_text())
    written = {name: (done, promised, test) for name, done, promised, _, test in cells(table)}
    wanted = {name: (done, promised, test) for name, done, promised, _, test in cells(render(declared(), {}))}
    assert written == wanted
    unseen = [name for name, _, _, was, _ in cells(table) if NOT_RUN in was or "**failed**" in was]
    assert not unseen


def test_rows_are_read_from_the_source(tmp_path: Path) -> None:
    """Without running or importing the tests."""
    (tmp_path / "test_one.py").write_text(MARKED.format(name="proxy: killed"))
    (row,) = declared(tmp_path)
    assert (row.name, row.done, row.promised) == ("proxy: killed", "kill -9 | again", "nothing lost")


def test_a_name_is_declared_once(tmp_path: Path) -> None:
    """Two tests of one name would hide one of the two."""
    for file in ("test_one.py", "test_two.py"):
        (tmp_path / file).write_text(MARKED.format(name="same"))
    with pytest.raises(TableError, match="twice"):
        declared(tmp_path)


def test_a_mark_that_is_no_literal_is_refused(tmp_path: Path) -> None:
    """Nothing can be promised that only a run knows."""
    (tmp_path / "test_one.py").write_text("@pytest.mark.fault(NAME, done='', promised='')\ndef test(): ...")
    with pytest.raises(TableError, match="literals"):
        declared(tmp_path)


def test_a_table_survives_being_read_again(tmp_path: Path) -> None:
    """Bars in a cell too."""
    (tmp_path / "test_one.py").write_text(MARKED.format(name="proxy: killed"))
    text = render(declared(tmp_path), {"proxy: killed": "a | b"})
    assert [row[:4] for row in cells(text)] == [["proxy: killed", "kill -9 | again", "nothing lost", "a | b"]]


@pytest.mark.parametrize(
    ("outcomes", "seen", "cell"),
    [
        (["passed", "passed"], ["0.9 s", "0.9 s", "1 s"], "0.9 s; 1 s"),
        (["passed"], [], "as promised"),
        (["passed", "skipped"], ["0.9 s"], "0.9 s"),
        (["skipped"], [], "skipped"),
        (["passed", "failed"], ["0.9 s"], "**failed**; 0.9 s"),
    ],
)
def test_a_cell_tells_what_all_items_of_a_test_saw(outcomes: list[str], seen: list[str], cell: str) -> None:
    """A failure is never hidden behind what passed."""
    assert summary({"outcomes": outcomes, "seen": seen}) == cell
