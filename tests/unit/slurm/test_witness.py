# SPDX-License-Identifier: Apache-2.0
"""Nodes as Slurm describes them: in service, silent, or unknown."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pvc.slurm.job import JobState
from pvc.slurm.witness import find_state, parse_node


@pytest.mark.parametrize(
    ("text", "answers", "boot"),
    [
        ("NodeName=n1 Arch=x86_64 State=IDLE BootTime=1795571671 SlurmdStartTime=1795571700", True, 1795571671.0),
        ("NodeName=n1 State=MIXED+DRAIN BootTime=1795571671", True, 1795571671.0),
        ("NodeName=n1 State=ALLOCATED+PLANNED BootTime=None", True, None),
        ("NodeName=n1 State=IDLE* BootTime=1795571671", False, 1795571671.0),
        ("NodeName=n1 State=DOWN*+NOT_RESPONDING BootTime=5", False, 5.0),
        ("NodeName=n1 State=IDLE+COMPLETING BootTime=5", False, 5.0),
        ("NodeName=n1 State=IDLE+POWERED_DOWN BootTime=Unknown", False, None),
        ("Node n17 not found", False, None),
        ("", False, None),
    ],
)
def test_nodes(text: str, answers: bool, boot: float | None) -> None:
    assert parse_node(text) == (answers, boot)


LEADER, OTHER = JobState(5, "", ("n1",), None), JobState(6, "", ("n2", "n3"), None)


@pytest.mark.parametrize(
    ("states", "node", "state"),
    [
        (("RUNNING", "CANCELLED"), "n1", "RUNNING"),
        (("RUNNING", "CANCELLED"), "n3", "CANCELLED"),
        # Its leader is over, its processes are not.
        (("COMPLETED", "COMPLETING"), "n2", "COMPLETING"),
        (("RUNNING", "CANCELLED"), "n9", "RUNNING"),
    ],
)
def test_each_component_has_a_state_of_its_own(states: tuple[str, str], node: str, state: str) -> None:
    jobs = [replace(each, state=word) for each, word in zip((LEADER, OTHER), states, strict=True)]
    assert find_state(jobs, node) == state


def test_job_without_nodes() -> None:
    assert find_state([JobState(5, "PENDING", (), None)], "n1") == "PENDING"
    assert find_state([], "n1") is None
