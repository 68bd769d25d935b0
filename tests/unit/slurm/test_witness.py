"""Nodes as Slurm describes them: in service, silent, or unknown."""

from __future__ import annotations

import pytest

from pvc.slurm.witness import parse_node


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
