"""Render README's fault matrix from the marked tests and from what they saw.

    python tests/tools/fault_table.py [RESULTS.json ...] [--write README.md]

Rows are declared by ``@pytest.mark.fault`` in the tests' source; RESULTS come from ``pytest --fault-table FILE``. A row
that no result names keeps what the file says it saw, so that a part of the tests can be run again alone.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
BEGIN = "<!-- faults:begin (make faults) -->"
END = "<!-- faults:end -->"
NOT_RUN = "not run yet"
_HEADER = "| fault | what is done | what is promised | what was seen | test |\n|---|---|---|---|---|\n"


@dataclass(frozen=True)
class Row:
    """One fault, as its test declares it. ``test`` is relative to the repository."""

    name: str
    done: str
    promised: str
    test: str


class TableError(Exception):
    """A mark or a file from which no table can be made."""


def declared(tests: Path = TESTS) -> list[Row]:
    """Every row that a test below ``tests`` declares, by name. Two tests of one name are an error."""
    rows: dict[str, Row] = {}
    for path in sorted(tests.rglob("test_*.py")):
        source = path.read_text()
        if "mark.fault(" not in source:
            continue
        for row in _rows_of(ast.parse(source), str(path.relative_to(tests.parent))):
            if row.name in rows:
                raise TableError(f"{row.name!r} is declared twice: in {rows[row.name].test} and {row.test}")
            rows[row.name] = row
    return sorted(rows.values(), key=lambda row: (row.name.partition(":")[0], row.test, row.name))


def _rows_of(module: ast.Module, test: str) -> Iterator[Row]:
    for node in ast.walk(module):
        if not (isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.fault"):
            continue
        try:
            (name,) = (ast.literal_eval(argument) for argument in node.args)
            words = {keyword.arg or "": ast.literal_eval(keyword.value) for keyword in node.keywords}
            yield Row(name, words.pop("done"), words.pop("promised"), test)
        except (ValueError, KeyError) as exc:
            raise TableError(f"{test}:{node.lineno}: fault(name, done=, promised=) takes literals") from exc


def summary(result: Mapping[str, list[str]]) -> str:
    """What a row's items saw, as one cell: a failure first, then each clause once."""
    outcomes = result["outcomes"]
    clauses = list(dict.fromkeys(result["seen"]))
    if "failed" in outcomes:
        clauses.insert(0, "**failed**")
    elif "passed" not in outcomes:
        clauses.insert(0, "skipped")
    return "; ".join(clauses) or "as promised"


def render(rows: Iterable[Row], seen: Mapping[str, str]) -> str:
    """The table in Markdown."""
    return _HEADER + "".join(
        f"| {_cell(row.name)} | {_cell(row.done)} | {_cell(row.promised)} | {_cell(seen.get(row.name, NOT_RUN))} "
        f"| [{Path(row.test).stem.removeprefix('test_')}]({row.test}) |\n"
        for row in rows
    )


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def split(document: str) -> tuple[str, str, str]:
    """The document's text before the table, the table, and the text behind it."""
    head, begin, rest = document.partition(BEGIN)
    table, end, tail = rest.partition(END)
    if not begin or not end:
        raise TableError(f"no place for the table: {BEGIN} and {END} are missing")
    return head + begin, table, end + tail


def cells(table: str) -> Iterator[list[str]]:
    """The rows of a rendered table, as the cells' text."""
    for line in table.strip().replace("\\|", "\0").splitlines()[2:]:
        yield [cell.strip().replace("\0", "|") for cell in line.strip("|").split("|")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="*", type=Path)
    parser.add_argument("--write", type=Path, metavar="README", help="replace the table in this file")
    arguments = parser.parse_args()
    seen: dict[str, str] = {}
    head = tail = ""
    if arguments.write:
        head, table, tail = split(arguments.write.read_text())
        seen = {name: was for name, _, _, was, _ in cells(table)}
    for path in arguments.results:
        seen |= {name: summary(result) for name, result in json.loads(path.read_text()).items()}
    text = render(declared(), seen)
    if not arguments.write:
        print(text, end="")
        return
    temporary = arguments.write.with_name(arguments.write.name + ".new")
    temporary.write_text(f"{head}\n{text}{tail}")
    os.replace(temporary, arguments.write)


if __name__ == "__main__":
    main()
