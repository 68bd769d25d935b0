# SPDX-License-Identifier: Apache-2.0
"""What other users reach of what root makes on a node; the scenarios are in reach_world.py."""

from __future__ import annotations

import pytest

from tests.host.reach_world import CASES
from tests.host.scenario import run_scenario

pytestmark = pytest.mark.host


@pytest.mark.parametrize(("scenario", "data_path"), [(scenario.__name__, path) for scenario, path in CASES])
def test_reach(scenario: str, data_path: str) -> None:
    run_scenario("reach_world", scenario, data_path)
