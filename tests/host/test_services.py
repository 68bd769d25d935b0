# SPDX-License-Identifier: Apache-2.0
"""Firewalls and network managers of the node's own beside a cluster; the scenarios are in services_world.py."""

from __future__ import annotations

import pytest

from tests.host import services_world
from tests.host.node_world import DATA_PATHS
from tests.host.scenario import run_scenario

pytestmark = pytest.mark.host

CASES = [
    (each.__name__, path)
    for each in services_world.SCENARIOS
    for path in DATA_PATHS
    if each in services_world.ON_BOTH_PATHS or (path == "ovs") == (each in services_world.OF_OVS)
]


@pytest.mark.parametrize(("scenario", "data_path"), CASES)
def test_beside_services(scenario: str, data_path: str) -> None:
    run_scenario("services_world", scenario, data_path)
