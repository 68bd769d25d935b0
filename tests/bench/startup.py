# SPDX-License-Identifier: Apache-2.0
"""How long commands take to start: what a user waits before anything happens."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.bench._rows import Row, row

ROOT = Path(__file__).resolve().parents[2]
RUNS = 15
COMMANDS = {
    "pvc --version": (["pvc", "--version"], 0.10),
    "pvc --help": (["pvc", "--help"], 0.15),
    "pvc ps": (["pvc", "ps"], 0.30),
    "pvc config check": (["pvc", "config", "check", "--site-only", os.fspath(ROOT / "conf" / "testbed")], 0.30),
    "python -c pass": (["python", "-c", "pass"], None),
}


def measure() -> Iterator[Row]:
    """Each command several times."""
    with tempfile.TemporaryDirectory() as home:
        environment = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "HOME": home}
        for name, (argv, budget) in COMMANDS.items():
            words = [os.fspath(Path(sys.executable).parent / argv[0]), *argv[1:]]
            times = []
            for _ in range(RUNS):
                begin = time.perf_counter()
                subprocess.run(words, env=environment, capture_output=True)
                times.append(time.perf_counter() - begin)
            yield row(name, times=times, **({} if budget is None else {"budget_wall_s": budget}))
