# SPDX-License-Identifier: Apache-2.0
"""Agents for the tests of what speaks to them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from agents import build_agent
from fleet import Fleet, fleet

from pvc.slurm.job import JobState


@pytest.fixture(autouse=True)
def running_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm says of every job that it runs."""
    for module in ("pulse", "registry"):
        monkeypatch.setattr(f"pvc.ops.{module}.read_states", lambda job_id: (JobState(job_id, "RUNNING", (), None),))


@pytest.fixture(scope="module")
def many(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """As many real agents as the module's COUNT says."""
    program = build_agent(tmp_path_factory.getbasetemp().parent / "pvc-agent")
    with fleet(program, tmp_path_factory.mktemp("fleet"), request.module.COUNT) as found:
        yield found
