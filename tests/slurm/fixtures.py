# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests that need a real Slurm cluster: one testbed for the whole run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from pvc.testbed import lifecycle
from pvc.testbed.layout import USERS
from pvc.testbed.place import find_place
from tests.slurm.images import import_bare, import_debian, import_small
from tests.slurm.testbed import Snapshot, Testbed, own_name, remove_stale, start_testbed


@pytest.fixture(scope="session")
def testbed() -> Iterator[Testbed]:
    """Three nodes with pvc's plug-in and daemons, for all tests of this process."""
    remove_stale()
    name = own_name()
    try:
        running = start_testbed(name)
        # Slurm makes some of its directories and cgroups when the first step runs.
        running.run(["srun", "-N3", "true"])
        running.wait_no_jobs()
        yield running
    finally:
        lifecycle.down(find_place(name))


@pytest.fixture(scope="session")
def bare(testbed: Testbed, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The template of a VM that runs and has no guest, which costs nothing: for tests of all that is around it."""
    return import_bare(testbed, tmp_path_factory.mktemp("bare"))


@pytest.fixture(scope="session")
def small(testbed: Testbed, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The template of a guest that boots in seconds."""
    return import_small(testbed, tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="session")
def debian(testbed: Testbed) -> str:
    """The template of a guest with a real ssh server."""
    return import_debian(testbed)


@pytest.fixture
def tb(testbed: Testbed) -> Iterator[Testbed]:
    """The testbed with all nodes up and no job, before and after."""
    _settle(testbed)
    yield testbed
    with contextlib.suppress(AssertionError):
        for user in USERS:
            testbed.run(["scancel", f"--user={user}"], user=user, check=False)
    _settle(testbed)


@pytest.fixture
def before(tb: Testbed) -> dict[str, Snapshot]:
    """What every compute node holds before the test; see ``Testbed.assert_clean``."""
    return {node: tb.snapshot(node) for node in tb.nodes()}


def _settle(running: Testbed) -> None:
    for node in running.nodes():
        if running.place.find_node(node) is None:
            running.boot(node)
    running.wait_no_jobs()
