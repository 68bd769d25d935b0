# SPDX-License-Identifier: Apache-2.0
"""A cluster's connections end with it, and nobody else's do."""

from __future__ import annotations

import pytest

from tests.host.scenario import run_scenario

pytestmark = pytest.mark.host


def test_the_connections_of_one_cluster_are_forgotten() -> None:
    run_scenario("conn_world")
