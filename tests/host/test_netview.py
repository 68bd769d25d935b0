# SPDX-License-Identifier: Apache-2.0
"""What a node tells of its networks, on a real kernel; the scenarios are in view_world.py."""

from __future__ import annotations

import pytest

from tests.host.scenario import run_scenario
from tests.host.view_world import SCENARIOS

pytestmark = pytest.mark.host


@pytest.mark.parametrize("scenario", [each.__name__ for each in SCENARIOS])
def test_told(scenario: str) -> None:
    run_scenario("view_world", scenario)
