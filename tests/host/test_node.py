# SPDX-License-Identifier: Apache-2.0
"""The root side on a real kernel, in namespaces of its own; the scenarios are in node_world.py."""

from __future__ import annotations

import pytest

from tests.host import etcd_world, late_world, outside_world, ports_world, taken_world
from tests.host.node_world import DATA_PATHS, OF_OVS, SCENARIOS
from tests.host.scenario import run_scenario

pytestmark = pytest.mark.host


CASES = [(each.__name__, path) for each in SCENARIOS for path in DATA_PATHS if path == "ovs" or each not in OF_OVS]


@pytest.mark.parametrize(("scenario", "data_path"), CASES)
def test_root_side(scenario: str, data_path: str) -> None:
    run_scenario("node_world", scenario, data_path)


@pytest.mark.parametrize("scenario", [each.__name__ for each in late_world.SCENARIOS])
def test_late_set_ups(scenario: str) -> None:
    run_scenario("late_world", scenario, "kernel")


@pytest.mark.parametrize("scenario", [each.__name__ for each in ports_world.SCENARIOS])
def test_many_ports(scenario: str) -> None:
    run_scenario("ports_world", scenario, "ovs")


@pytest.mark.parametrize("scenario", [each.__name__ for each in taken_world.SCENARIOS])
def test_what_is_taken(scenario: str) -> None:
    run_scenario("taken_world", scenario, "kernel")


CHANGED = [
    (each.__name__, path)
    for each in outside_world.SCENARIOS
    for path in DATA_PATHS
    if path == "kernel" or each in outside_world.ON_BOTH_PATHS
]


@pytest.mark.parametrize(("scenario", "data_path"), CHANGED)
def test_what_others_change(scenario: str, data_path: str) -> None:
    run_scenario("outside_world", scenario, data_path)


@pytest.mark.parametrize("scenario", [each.__name__ for each in etcd_world.SCENARIOS])
def test_what_is_wrong_with_etcd(scenario: str) -> None:
    run_scenario("etcd_world", scenario)
