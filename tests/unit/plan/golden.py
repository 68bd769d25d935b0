# SPDX-License-Identifier: Apache-2.0
"""Plans that are kept beside the tests: ``make golden`` writes them anew, the diff is reviewed."""

from __future__ import annotations

import json
import os
from pathlib import Path

from pvc.codec import to_data
from pvc.plan.node import NodePlan

GOLDEN = Path(__file__).parent.parent / "golden"


def check_golden(name: str, plan: NodePlan) -> None:
    """Whether a plan is what it was."""
    steps = [{"action": type(step).__name__, **to_data(step)} for step in plan.actions]
    data = {"grant": to_data(plan.grant), "netns": plan.netns, "taps": to_data(plan.taps), "actions": steps}
    text = json.dumps(data, indent=1) + "\n"
    path = GOLDEN / f"{name}.json"
    if os.environ.get("PVC_GOLDEN") == "write":
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()
