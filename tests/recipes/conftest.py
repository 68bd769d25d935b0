# SPDX-License-Identifier: Apache-2.0
"""The testbed of tests/slurm, for images that take minutes to build: run by hand, see HACKING.md."""

from __future__ import annotations

import pytest

from tests.slurm.conftest import tb, testbed

__all__ = ["tb", "testbed"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here needs a testbed."""
    for item in items:
        if "tests/recipes/" in item.path.as_posix():
            item.add_marker(pytest.mark.slurm)
