# SPDX-License-Identifier: Apache-2.0
"""The agent's sources: their C tests pass under the sanitizers, and the house rules for C hold."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

import pvc
from tests.unit.builds import make

AGENT = Path(__file__).parents[2] / "agent"
SOURCES = sorted([*AGENT.glob("*.c"), *AGENT.glob("*.h")])
MAX_FILE = 400
# All that a shell, an unbounded copy or an unbounded wait could come in by; execvp runs what the host asks for.
BANNED = re.compile(r"\b(system|popen|vsprintf|sprintf|gets|alloca|sleep)\s*\(")


@pytest.mark.allow_run
def test_c_tests_pass_under_the_sanitizers(request: pytest.FixtureRequest) -> None:
    program = make(request.config, AGENT, "check", rests_on=[Path(pvc.__file__)]) / "pvc-agent"
    headers = subprocess.run(["readelf", "-W", "-l", program], capture_output=True, text=True, check=True).stdout
    assert "INTERP" not in headers, "it needs a dynamic loader, which a guest may not have"
    assert re.search(r"GNU_STACK.* RW ", headers)
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    assert re.fullmatch(r"pvc-agent [0-9.]+, protocol 1\n", said)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_file_is_small_and_has_no_banned_call(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= MAX_FILE
    assert max(map(len, text.expandtabs(8).splitlines())) <= 120
    assert BANNED.search(text) is None


def test_every_function_of_a_header_is_named_after_its_file() -> None:
    for path in AGENT.glob("*.h"):
        prototypes = re.findall(r"^(?:__attribute__\(.*?\)\) )?\w[\w *]*?\b\*?(\w+)\(", path.read_text(), re.MULTILINE)
        names = [name for name in prototypes if name != "__attribute__"]
        assert names, path.name
        assert all(name.startswith(f"{path.stem}_") for name in names), (path.name, names)
