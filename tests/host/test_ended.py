# SPDX-License-Identifier: Apache-2.0
"""Users do not decide whether a node stays in service; the scenarios are in ended_world.py."""

from __future__ import annotations

import pytest

from tests.host.ended_world import SCENARIOS
from tests.host.scenario import run_scenario

pytestmark = pytest.mark.host


@pytest.mark.parametrize("scenario", [each.__name__ for each in SCENARIOS])
def test_users_do_not_take_a_node_out_of_service(scenario: str) -> None:
    run_scenario("ended_world", scenario)
