"""The root side on a real kernel, in namespaces of its own; the scenarios are in node_world.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.host.node_world import SCENARIOS

pytestmark = pytest.mark.host
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("scenario", [each.__name__ for each in SCENARIOS])
def test_root_side(scenario: str) -> None:
    # A PID namespace ends whatever a scenario leaves, when its first process ends.
    wrapper = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    argv = [*wrapper, sys.executable, "-m", "tests.host.node_world", scenario]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
