# SPDX-License-Identifier: Apache-2.0
"""VMs on bridges of the site's, on a real kernel; the scenarios are in bridge_world.py."""

from __future__ import annotations

import pytest

from tests.host.bridge_world import SCENARIOS
from tests.host.scenario import run_scenario

pytestmark = pytest.mark.host


@pytest.mark.parametrize("scenario", [each.__name__ for each in SCENARIOS])
def test_bridged(scenario: str) -> None:
    run_scenario("bridge_world", scenario)
