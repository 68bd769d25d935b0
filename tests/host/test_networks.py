"""Networks between nodes on a real kernel, in namespaces of their own; the scenarios are in net_world.py."""

from __future__ import annotations

import pytest

from tests.host.net_world import SCENARIOS
from tests.host.node_world import DATA_PATH, DATA_PATHS
from tests.host.scenario import run_scenario

pytestmark = pytest.mark.host


@pytest.mark.parametrize("data_path", DATA_PATHS)
@pytest.mark.parametrize("scenario", [each.__name__ for each in SCENARIOS])
def test_networks(scenario: str, data_path: str) -> None:
    run_scenario("net_world", scenario, **{DATA_PATH: data_path})
