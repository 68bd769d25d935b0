# SPDX-License-Identifier: Apache-2.0
"""Pages name tests that there are: files, functions, scenarios, parameters, suites in C."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tests.slurm.test_findings import CASES

ROOT = Path(__file__).parents[2]
PAGES = ("administrators.md", "attacks.md", "security.md", "users.md")
LEAST_ATTACKS = 60
# `FILE`, `FILE::NAME`, `FILE::NAME[PARAMETER]`, and `FILE` (SCENARIO, SCENARIO); FILE may have no directory.
_TEST = re.compile(
    r"`(?P<file>(?:tests/)?[\w/]*?\w+\.(?:py|c))(?:::(?P<name>\w+)(?:\[(?P<parameter>[\w-]+)\])?)?`"
    r"(?: \((?P<scenarios>\w+(?:, \w+)*)\))?"
)
_ROW = re.compile(r"\| (\d+) \|")
Test = tuple[str, str, str, tuple[str, ...]]


def _find_tests(text: str) -> list[Test]:
    """File, function, parameter and scenarios of each test that a text names; other files of ours are none."""
    return [
        (
            found["file"],
            found["name"] or "",
            found["parameter"] or "",
            tuple(re.findall(r"\w+", found["scenarios"] or "")),
        )
        for found in _TEST.finditer(text)
        if found["file"].startswith("tests/") or found["file"].startswith("test_")
    ]


def _rows() -> list[list[str]]:
    """The cells of each attack."""
    lines = (ROOT / "docs/attacks.md").read_text().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if _ROW.match(line)]


@cache
def _defined(path: Path) -> frozenset[str]:
    """Functions of a module, or tests that a suite in C lists."""
    text = path.read_text()
    if path.suffix == ".c":
        return frozenset(re.findall(r"\bTEST\((\w+)\)", text))
    return frozenset(node.name for node in ast.parse(text).body if isinstance(node, ast.FunctionDef))


@cache
def _tabled(path: Path) -> frozenset[str]:
    """All that a module names in what it assigns to names of its own."""
    tables = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Assign | ast.AnnAssign)]
    values = [node for table in tables if table.value is not None for node in ast.walk(table.value)]
    return frozenset(node.id for node in values if isinstance(node, ast.Name))


@cache
def _imported(path: Path) -> tuple[Path, ...]:
    """The modules of the tests' own that a test file imports."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{each.name}" for each in node.names)]
            found += [ROOT / f"{name.replace('.', '/')}.py" for name in names if name.startswith("tests.")]
    return tuple(each for each in found if each.is_file())


def _scenarios(path: Path) -> set[str]:
    """What a test file runs of the worlds that it imports: functions that a table of theirs names."""
    return {name for module in _imported(path) for name in _defined(module) & _tabled(module)}


def _locate(name: str) -> Path | None:
    """A file by its path; without a directory it is of tests/attacks, or the one of that name."""
    if "/" in name:
        return ROOT / name if (ROOT / name).is_file() else None
    if (ROOT / "tests/attacks" / name).is_file():
        return ROOT / "tests/attacks" / name
    found = list((ROOT / "tests").rglob(name))
    return found[0] if len(found) == 1 else None


def _lack(test: Test) -> str | None:
    """What a test that is named lacks."""
    file, name, parameter, scenarios = test
    path = _locate(file)
    if path is None:
        return f"{file}: no such file"
    if name and name not in _defined(path):
        return f"{file}: no test {name}"
    if parameter and not any(f'"{parameter}"' in each.read_text() for each in (path, *_imported(path))):
        return f"{file}: nothing called {parameter}"
    strange = set(scenarios) - (_scenarios(path) if scenarios else set())
    return f"{file}: no scenario {', '.join(sorted(strange))}" if strange else None


@pytest.mark.parametrize("page", PAGES)
def test_named_tests_are_there(page: str) -> None:
    found = _find_tests((ROOT / "docs" / page).read_text())
    assert len(found) > 20
    assert not [lack for lack in map(_lack, found) if lack]


def test_attacks_are_many_and_each_is_carried_out_by_a_test() -> None:
    rows = _rows()
    assert [int(row[0]) for row in rows] == list(range(1, len(rows) + 1))
    assert len(rows) >= LEAST_ATTACKS
    for row in rows:
        assert len(row) == 6, row
        assert all(row), row
        tests = _find_tests(row[5])
        assert tests, row
        # A file alone says nothing about which attack it is.
        assert all(name or scenarios for _, name, _, scenarios in tests), row


@pytest.mark.parametrize(
    ("text", "lack"),
    [
        ("`tests/unit/test_security_docs.py`", None),
        ("`tests/unit/test_security_docs.py::test_named_tests_are_there`", None),
        ("`tests/unit/test_security_docs.py::test_nothing`", "no test test_nothing"),
        ("`tests/unit/test_nothing.py`", "no such file"),
        ("`test_security_docs.py`", None),
        ("`tests/host/test_reach.py` (stopped_vm, kept)", None),
        ("`tests/host/test_reach.py` (as_user)", "no scenario as_user"),
        ("`tests/host/test_networks.py` (forged, tunnels, greedy)", None),
        ("`tests/host/test_networks.py` (gone)", "no scenario gone"),
        ("`tests/fuzz/test_fuzz.py::test_target[node-socket]`", None),
        ("`tests/fuzz/test_fuzz.py::test_target[node-nothing]`", "nothing called node-nothing"),
        ("`tests/spank/test_slurmd.c::reason_of_a_fault_is_clean`", None),
        ("`tests/spank/test_slurmd.c::request`", "no test request"),
    ],
)
def test_the_check_finds_what_it_is_for(text: str, lack: str | None) -> None:
    (test,) = _find_tests(text)
    said = _lack(test)
    assert (said is None) == (lack is None), said
    assert lack is None or (said is not None and lack in said)


def test_each_finding_of_a_node_is_described() -> None:
    """The table of docs/administrators.md has a row for each case that the test carries out, and no other."""
    text = (ROOT / "docs" / "administrators.md").read_text().partition("## What `pvc doctor --node` says")[2]
    rows = re.findall(r"^\| ([a-z-]+) \|", text, re.MULTILINE)
    assert [each for each in rows if each not in ("case", "---")] == list(CASES)
