# SPDX-License-Identifier: Apache-2.0
"""What is fuzzed outside of this process: C by libFuzzer, and the programs at ports by the kernel itself (root)."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.fuzz.engine import CORPUS
from tests.host.scenario import WRAPPER

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
C_TARGETS = ("agent", "spank")
BPF = "bpf"


def build(directory: Path) -> None:
    """Make the programs of libFuzzer."""
    # MAKEFLAGS: this may run below another make, whose job server is not ours.
    env = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    subprocess.run(["make", "-s", "-j2", "-C", HERE, f"BUILD={directory}"], check=True, env=env)


def fuzz_c(directory: Path, name: str, *limits: str) -> subprocess.CompletedProcess[str]:
    """Run one; what it finds is kept in the corpus, what it learns is not."""
    crashes = CORPUS / name / "crash-"
    with tempfile.TemporaryDirectory(prefix="pvc-fuzz-") as scratch:
        argv = [directory / f"fuzz-{name}", *limits, "-max_len=16384", "-timeout=20", f"-artifact_prefix={crashes}"]
        return subprocess.run(
            [*argv, scratch, CORPUS / name], check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )


def replay_c(directory: Path, name: str) -> subprocess.CompletedProcess[str]:
    """Each input of the corpus, and some more from a fixed seed."""
    return fuzz_c(directory, name, "-seed=1", "-runs=2000")


def fuzz_bpf(seconds: float) -> subprocess.CompletedProcess[str]:
    """Random frames for the programs at ports, compared with the second reading of their rules."""
    argv = [*WRAPPER, sys.executable, "-m", "tests.host.prog_world", "fuzz", str(seconds)]
    return subprocess.run(argv, cwd=ROOT, check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
