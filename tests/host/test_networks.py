# SPDX-License-Identifier: Apache-2.0
"""Networks between nodes on a real kernel, in namespaces of their own; scenarios: net_world.py and wire_world.py."""

from __future__ import annotations

import pytest

from tests.host import guard_world, net_world, wire_world
from tests.host.node_world import DATA_PATH, DATA_PATHS
from tests.host.scenario import run_scenario

pytestmark = pytest.mark.host


@pytest.mark.parametrize("data_path", DATA_PATHS)
@pytest.mark.parametrize(
    ("world", "scenario"),
    [
        (each.__name__.rpartition(".")[2], found.__name__)
        for each in (net_world, wire_world, guard_world)
        for found in each.SCENARIOS
    ],
)
def test_networks(world: str, scenario: str, data_path: str) -> None:
    run_scenario(world, scenario, **{DATA_PATH: data_path})
