# SPDX-License-Identifier: Apache-2.0
"""Directories with short names: sockets below them must have paths of at most 107 bytes (unix(7))."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """As pytest's, but for its length; nothing of it is kept."""
    path = Path(tempfile.mkdtemp(prefix="pvc-vm-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def short_path() -> Iterator[Path]:
    """The same for what all tests of a module share."""
    with tempfile.TemporaryDirectory(prefix="pvc-vm-", dir="/tmp") as path:
        yield Path(path)
