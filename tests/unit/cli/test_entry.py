# SPDX-License-Identifier: Apache-2.0
"""The commands as they are installed: whatever their users have for other programs, and without standard streams."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import pvc

pytestmark = pytest.mark.allow_run("the installed commands, in a shell")
BIN = Path(sys.executable).parent
SITE = Path(pvc.__file__).parents[1] / "conf" / "testbed"
CHECK = ["config", "check", "--site-only", os.fspath(SITE)]


@pytest.fixture
def traps(tmp_path: Path) -> Path:
    """A directory of modules that nobody should import."""
    directory = tmp_path / "traps"
    directory.mkdir()
    for name in ("yaml", "click", "pvc", "sitecustomize", "usercustomize", "json"):
        (directory / f"{name}.py").write_text(f"raise SystemExit('another {name}')\n")
    return directory


def run_pvc(words: list[str], environ: dict[str, str], command: str = "pvc") -> subprocess.CompletedProcess[str]:
    base = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
    return subprocess.run([BIN / command, *words], env={**base, **environ}, capture_output=True, text=True)


@pytest.mark.parametrize(
    "environ",
    [
        {"PYTHONPATH": "TRAPS"},
        {"PYTHONHOME": "TRAPS"},
        {"PYTHONHOME": "/usr:/usr/local"},
        {"PYTHONSTARTUP": "TRAPS/yaml.py", "PYTHONINSPECT": "1"},
        {"PYTHONUSERBASE": "TRAPS", "PYTHONWARNINGS": "error", "PYTHONOPTIMIZE": "2"},
        {"PYTHONIOENCODING": "no-such", "PYTHONUTF8": "7"},
        {"PYTHONVERBOSE": "2", "PYTHONDEBUG": "1", "PYTHONPLATLIBDIR": "nope", "PYTHONEXECUTABLE": "/nope"},
        {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPYCACHEPREFIX": "/nope", "PYTHONSAFEPATH": ""},
        {"PYTHONHASHSEED": "many", "PYTHONMALLOC": "debug"},
        {"CONDA_PREFIX": "TRAPS", "VIRTUAL_ENV": "TRAPS"},
        *({"LC_ALL": value, "LANG": value} for value in ("C", "POSIX", "de_DE.ISO-8859-1", "no_SUCH", "\udcff", "")),
        {"TERM": "no-such"},
        {"TERM": ""},
        {"TMPDIR": "/nope"},
    ],
    ids=str,
)
def test_nothing_for_other_pythons_is_ours(environ: dict[str, str], traps: Path) -> None:
    found = {name: value.replace("TRAPS", os.fspath(traps)) for name, value in environ.items()}
    done = run_pvc(CHECK, found)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("no problems\n")


def test_nor_of_roots_command(traps: Path) -> None:
    done = run_pvc(["--version"], {"PYTHONPATH": os.fspath(traps), "PYTHONHOME": "/nope"}, "pvc-node")
    assert (done.returncode, done.stdout) == (0, f"pvc-node, version {pvc.__version__}\n")


def test_the_current_directory_is_no_place_for_modules(traps: Path) -> None:
    done = subprocess.run([BIN / "pvc", *CHECK], cwd=traps, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_link_to_the_command(tmp_path: Path) -> None:
    (tmp_path / "second").symlink_to(BIN / "pvc")
    (tmp_path / "first").symlink_to("second")
    done = subprocess.run(["./first", "--version"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"pvc {pvc.__version__}\n")


@pytest.mark.parametrize("command", ["pvc", "pvc-node"])
def test_the_interpreter_may_be_called_python3(command: str, tmp_path: Path) -> None:
    """As in an environment without a plain python, which systems may do without, too."""
    place = tmp_path / "bin"
    place.mkdir()
    shutil.copy(BIN / command, place)
    done = subprocess.run([place / command, "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (6, "")
    assert done.stderr.startswith(f"{command}: there is no python or python3 beside {place}/{command}\nhint: ")
    (place / "python3").symlink_to("/usr/bin/python3")
    done = subprocess.run([place / command, "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (6, "")
    assert done.stderr.startswith(f"{command}: {place}/python3 has no module pvc\nhint: ")
    (place / "python3").unlink()
    (place / "python3").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (place / "python3").chmod(0o755)
    done = subprocess.run([place / command, "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert pvc.__version__ in done.stdout


def shell(line: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", line.replace("@pvc", os.fspath(BIN / "pvc"))], capture_output=True, text=True)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams(closed: str) -> None:
    done = shell(f"@pvc --version {closed}; echo $?; @pvc no-such {closed}; echo $?")
    expected = ["0", "2"] if ">&- " in f"{closed} ".replace("2>&-", "") else [f"pvc {pvc.__version__}", "0", "2"]
    assert done.stdout.split("\n")[:-1] == expected
    assert done.stderr == ("" if "2>&-" in closed else "pvc: there is no command 'no-such'\nhint: pvc --help\n")


@pytest.mark.parametrize("words", ["--version", "--help", "config check --site-only SITE"])
def test_a_full_standard_output_is_named(words: str) -> None:
    done = shell(f"@pvc {words.replace('SITE', os.fspath(SITE))} >/dev/full")
    assert done.returncode == 1
    assert done.stderr == "pvc: cannot write to standard output: No space left on device\n"


def test_a_full_standard_error_changes_no_exit_code() -> None:
    assert shell("@pvc no-such 2>/dev/full").returncode == 2
    assert shell("@pvc status -j 77 2>/dev/full").returncode == 4


def test_a_reader_that_goes() -> None:
    done = shell("set -o pipefail; @pvc --help | head -n 1")
    assert done.stdout.startswith("Usage: pvc")
    assert done.stderr == ""
