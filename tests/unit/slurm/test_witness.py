"""Nodes as Slurm describes them: in service, silent, or unknown."""

from __future__ import annotations

import pytest

from pvc.slurm.witness import parse_job, parse_node


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


LEADER = "JobId=5 HetJobId=5 HetJobOffset=0 JobState={} NodeList=n1 BatchHost=n1"
OTHER = "JobId=6 HetJobId=5 HetJobOffset=1 JobState={} NodeList=n[2-3] BatchHost=n2"


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
    text = f"{LEADER.format(states[0])}\n{OTHER.format(states[1])}\n"
    assert parse_job(text, node) == state


def test_job_without_nodes() -> None:
    assert parse_job("JobId=5 JobState=PENDING NodeList=(null) x=[", "n1") == "PENDING"
    assert parse_job("JobId=5 JobState=PENDING NodeList=n[", "n1") == "PENDING"
    assert parse_job("", "n1") == "UNKNOWN"
