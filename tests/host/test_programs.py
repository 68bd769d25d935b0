# SPDX-License-Identifier: Apache-2.0
"""The programs at ports, in namespaces of their own; scenarios: prog_world.py."""

from __future__ import annotations

import pytest

from tests.host import prog_world
from tests.host.scenario import run_scenario

pytestmark = pytest.mark.host


@pytest.mark.parametrize("scenario", [each.__name__ for each in prog_world.SCENARIOS])
def test_programs(scenario: str) -> None:
    run_scenario("prog_world", scenario)
