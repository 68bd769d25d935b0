# SPDX-License-Identifier: Apache-2.0
"""Marks what is here; its fixtures are in fixtures.py."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here needs a testbed."""
    for item in items:
        if "tests/slurm/" in item.path.as_posix():
            item.add_marker(pytest.mark.slurm)
