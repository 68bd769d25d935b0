# SPDX-License-Identifier: Apache-2.0
"""Run one scenario of a module of this package in namespaces of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# A PID namespace ends whatever a scenario leaves, when its first process ends.
WRAPPER = ("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")


def run_scenario(module: str, *words: str, **settings: str) -> None:
    """Fail with all that it said unless ``python -m tests.host.MODULE WORDS`` succeeds; ``settings`` go into its
    environment.
    """
    argv = [*WRAPPER, sys.executable, "-m", f"tests.host.{module}", *words]
    env = {**os.environ, **settings}
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False, timeout=900, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
