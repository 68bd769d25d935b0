# SPDX-License-Identifier: Apache-2.0
"""The programs at ports: they compile for any machine's kernel, and the house rules for C hold."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

BPF = Path(__file__).parents[2] / "bpf"
SOURCES = sorted([*BPF.glob("*.c"), *BPF.glob("*.h")])
MAX_FILE = 400


@pytest.mark.allow_run
def test_the_object_has_both_programs_and_nothing_of_one_kernel(tmp_path: Path) -> None:
    # MAKEFLAGS: this may run below another make, whose job server is not ours.
    env = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    argv = ["make", "-s", "-C", os.fspath(BPF), f"BUILD={tmp_path}"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    shown = subprocess.run(
        ["readelf", "-W", "-s", "-S", tmp_path / "port.o"], capture_output=True, text=True, check=True
    )
    for name in ("from_vm", "from_tunnel", "networks", "ports", "here", "elsewhere"):
        assert re.search(rf"GLOBAL DEFAULT +\d+ {name}$", shown.stdout, re.MULTILINE), name
    # Whatever is looked up in the running kernel's types would bind the object to what that kernel says of itself.
    assert "vmlinux" not in "".join(path.read_text() for path in SOURCES)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_file_is_small(path: Path) -> None:
    lines = path.read_text().expandtabs(8).splitlines()
    assert len(lines) <= MAX_FILE
    assert max(map(len, lines)) <= 120
