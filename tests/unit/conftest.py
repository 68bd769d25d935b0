# SPDX-License-Identifier: Apache-2.0
"""What unit tests of several rooms begin with."""

from __future__ import annotations

from pathlib import Path

import pytest

from pvc.node.context import Context


@pytest.fixture
def context(tmp_path: Path) -> Context:
    """Of a node without a configuration, on which no job has been."""
    (tmp_path / "run" / "locks").mkdir(parents=True)
    (tmp_path / "run" / "locks" / "node").touch()
    return Context(tmp_path / "conf", tmp_path / "state", tmp_path / "run")
