# SPDX-License-Identifier: Apache-2.0
"""Marks what is here, and whom attacks are carried out against; the testbed is the one of tests/slurm."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.attacks.victim import BARE, Victim
from tests.slurm.testbed import Testbed


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here needs a testbed."""
    for item in items:
        if "tests/attacks/" in item.path.as_posix():
            item.add_marker(pytest.mark.slurm)


@pytest.fixture
def victim(tb: Testbed) -> Iterator[Victim]:
    """Student's cluster of two VMs on n1 and n2, without an operating system: it runs in a second."""
    with Victim(tb, BARE).running() as victim:
        yield victim
