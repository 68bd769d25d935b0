# SPDX-License-Identifier: Apache-2.0
"""Linters are tests: what they find fails `make check` on every machine, not only in CI."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.allow_run  # linters are programs


def lint(*argv: str) -> None:
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.fail(f"{' '.join(argv[:6])} …\n{done.stdout}{done.stderr}", pytrace=False)


def tracked_files() -> list[Path]:
    """The files of the project: those that git knows, or without git all but what builds leave."""
    done = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if done.returncode == 0:
        return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]
    built = {".venv", ".venv-docs", "build", "dist", "__pycache__"}
    built |= {".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis"}
    return [path for path in ROOT.rglob("*") if path.is_file() and not built & set(path.relative_to(ROOT).parts)]


def first_line(path: Path) -> str:
    with path.open("rb") as stream:
        return stream.readline(200).decode(errors="replace")


def test_ruff() -> None:
    lint(sys.executable, "-m", "ruff", "check", "--quiet", "--no-cache", ".")


def test_format() -> None:
    lint(sys.executable, "-m", "ruff", "format", "--quiet", "--no-cache", "--diff", ".")


def test_mypy() -> None:
    lint(sys.executable, "-m", "mypy", "--config-file", "setup.cfg", "--no-error-summary")


def test_shellcheck() -> None:
    scripts = [
        str(path)
        for path in tracked_files()
        if path.suffix in {".sh", ".bash"} or re.match(r"#!.*\b(ba|da|k)?sh\b", first_line(path))
    ]
    assert scripts
    lint("shellcheck", "--external-sources", *scripts)


def test_spelling() -> None:
    lint(sys.executable, "-m", "codespell_lib", *(str(path.relative_to(ROOT)) for path in tracked_files()))


def test_licence() -> None:
    """Each source says what it is under; the BPF programs also what the kernel asks of those who use its helpers."""
    wrong = []
    for path in tracked_files():
        name = path.relative_to(ROOT).as_posix()
        if path.suffix not in {".py", ".c", ".h", ".sh"} and not first_line(path).startswith("#!"):
            continue
        if not path.stat().st_size or "corpus" in path.parts:
            continue
        licence = "(GPL-2.0-only OR MIT)" if name.startswith("bpf/") else "Apache-2.0"
        if not any(f"SPDX-License-Identifier: {licence}" in line for line in path.read_text().splitlines()[:2]):
            wrong.append(name)
    assert not wrong


def test_no_open_ends() -> None:
    """What is written is finished; what is not written is an issue of the tracker."""
    words = re.compile(
        "|".join(["TO" + "DO", "FIX" + "ME", r"\bXX" + r"X\b", "NotImplemented" + "Error", "mark.x" + "fail"])
    )
    found = []
    for path in tracked_files():
        if path.suffix in {".py", ".c", ".h", ".sh", ".rst", ".md", ".yaml", ".yml"} or path.name == "Makefile":
            for number, line in enumerate(path.read_text().splitlines(), 1):
                if words.search(line):
                    found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert not found, "\n".join(found)


def test_text_files_are_tidy() -> None:
    """UTF-8, a newline at the end, no blanks at the end of lines, no tabs (ruff knows where Python may have them)."""
    wrong = []
    for path in tracked_files():
        if path.suffix not in {".py", ".rst", ".md", ".yaml", ".yml", ".cfg", ".toml", ".txt", ".service"}:
            continue
        text = path.read_text(encoding="utf-8")
        if text and not text.endswith("\n"):
            wrong.append(f"{path.relative_to(ROOT)}: no newline at the end")
        for number, line in enumerate(text.split("\n"), 1):
            if line != line.rstrip() or ("\t" in line and path.suffix != ".py"):
                wrong.append(f"{path.relative_to(ROOT)}:{number}: blanks or tabs")
    assert not wrong, "\n".join(wrong)


def test_the_tree_is_about_pvc() -> None:
    """No paths of the machine it was written on, no numbers of a tracker, no registries, no word on who typed it."""
    words = re.compile(
        "|".join(
            [
                r"(?<![\w.-])/wor" + r"k/(?:main|shared)\b",
                r"\bissue " + r"#?\d+\b",
                r"(?<![&\w])#" + r"\d{1,4}\b(?!\w)",
                r"\bA" + r"I\b",
                r"\bLL" + r"M\b",
                r"\b(?i:clau" + r"de|anthro" + r"pic|chat" + r"gpt|copi" + r"lot)\b",
                r"\bpypi\.or" + "g",
                r"pythonhoste" + "d",
                r"proxy\.golan" + "g",
            ]
        )
    )
    found = []
    for path in tracked_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if words.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:120]}")
    assert not found, "\n".join(found)
