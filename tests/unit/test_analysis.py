# SPDX-License-Identifier: Apache-2.0
"""clang's static analyzer finds nothing in the C of the tree: leaks, null pointers, what was never set."""

from __future__ import annotations

import hashlib
import os
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_C = ("-D_GNU_SOURCE", "-std=c11", '-DPVC_RELEASE="0"')
_CHECKERS = (
    *("core", "unix", "valist", "nullability", "optin.portability", "security.FloatLoopCounter"),
    *("security.insecureAPI.UncheckedReturn", "security.insecureAPI.vfork"),
)
SOURCES = sorted(path for name in ("agent", "bpf", "spank") for path in (ROOT / name).glob("*.c"))


@cache
def machine() -> str:
    said = subprocess.run(["cc", "-print-multiarch"], capture_output=True, text=True, check=True)
    return said.stdout.strip()


def flags(path: Path) -> tuple[str, ...]:
    if path.parent.name != "bpf":
        return _C
    # The kernel's headers have a part for the machine, which this target does not find by itself.
    return ("-target", "bpf", "-O2", *([f"-I/usr/include/{machine()}"] if machine() else []))


def content_of(path: Path, argv: list[str]) -> str:
    """What a result rests on: all that is analysed, and by what."""
    version = subprocess.run(["clang", "--version"], capture_output=True, text=True, check=True).stdout
    found = hashlib.sha256(f"{version}{argv}".encode())
    for each in (path, *sorted(path.parent.glob("*.h"))):
        found.update(each.name.encode() + b"\0" + each.read_bytes())
    return found.hexdigest()


@pytest.mark.allow_run
@pytest.mark.parametrize("path", SOURCES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_the_analyzer_has_no_findings(path: Path, request: pytest.FixtureRequest) -> None:
    argv = ["clang", "--analyze", "--analyzer-output", "text", "-Xclang", "-analyzer-werror", *flags(path)]
    for checker in _CHECKERS:
        argv += ["-Xclang", "-analyzer-checker", "-Xclang", checker]
    # It takes a second for each file, so what was well is not looked at again until it changes.
    known = request.config.cache
    assert known is not None
    done = known.mkdir("analysis") / content_of(path, argv)
    if done.exists():
        return
    said = subprocess.run(
        [*argv, "-o", os.devnull, path], capture_output=True, text=True, check=False, cwd=ROOT, timeout=300
    )
    assert said.returncode == 0, said.stdout + said.stderr
    assert "warning:" not in said.stderr, said.stderr
    done.touch()


@pytest.mark.allow_run
def test_the_analyzer_finds_a_leak(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.c"
    wrong.write_text(
        "#include <stdlib.h>\nint wrong(void);\nint wrong(void)\n{\n\tchar *kept = malloc(1);\n\treturn !kept;\n}\n"
    )
    argv = ["clang", "--analyze", "-Xclang", "-analyzer-werror", *_C, "-o", os.devnull, wrong]
    assert subprocess.run(argv, capture_output=True, check=False).returncode != 0
