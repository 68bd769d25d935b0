# SPDX-License-Identifier: Apache-2.0
"""How the status looks: what fits, and what is said of VMs that are not well."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvc.model.vm import AgentStatus, CloudInit, Phase, VmStatus
from pvc.ops.statusview import Scene, find_trouble, format_age, format_headline, format_troubles, render
from tests.unit.ops.worlds import make_record, make_status

NOW = 1000.0
SILENT = AgentStatus(connected=True, problem="the guest does not answer")
LOST = AgentStatus(problem="the guest has said nothing for 61 s")


def scene_of(*vms: VmStatus, ends: float | None = None) -> Scene:
    return Scene(make_record(), vms, NOW, ends)


@given(
    st.integers(1, 200),
    st.integers(1, 60),
    st.integers(0, 600),
    st.lists(st.sampled_from(list(Phase)), min_size=1, max_size=40),
    st.text(max_size=90),
)
def test_whatever_the_size_it_fits(width: int, height: int, top: int, phases: list[Phase], detail: str) -> None:
    vms = [make_status(rank, phase, detail=detail) for rank, phase in enumerate(phases)]
    lines, shown = render(scene_of(*vms, ends=2000.0), width, height, top)
    assert len(lines) <= max(height, 3)
    assert all(len(line) <= max(width, 10) for line in lines)
    assert all(char.isprintable() for line in lines for char in line)
    assert 0 <= shown <= len(vms)
    assert lines[1].startswith("VM")


def test_all_of_512_can_be_scrolled_to() -> None:
    scene = scene_of(*(make_status(rank, Phase.REACHABLE) for rank in range(512)))
    seen: list[str] = []
    top = 0
    while len(seen) < 512:
        lines, shown = render(scene, 80, 24, top)
        assert shown == min(top, 512 - 22)
        seen += [line.split()[0] for line in lines[2:]][len(seen) - shown :]
        top += 22
    assert seen == [f"vm{rank}" for rank in range(512)]
    assert render(scene, 80, 24)[0][0].startswith("1-22 of 512 · job 7")


def test_narrow_terminals_keep_what_matters_most() -> None:
    scene = scene_of(make_status(0, Phase.FAILED, detail="its disk is gone, and nobody knows where"))
    assert render(scene, 200, 24)[0][1].split()[-6:] == ["USED", "ACCEL", "ADDRESS", "SSH", "AGENT", "DETAIL"]
    assert render(scene, 44, 24)[0][1].split() == ["VM", "NODE", "PHASE", "SINCE", "ADDRESS"]
    assert render(scene, 12, 24)[0][1].split() == ["VM", "PHASE"]


@pytest.mark.parametrize(
    ("status", "step"),
    [
        (make_status(0, Phase.FAILED, detail="QEMU died"), "pvc logs vm0 -n 30"),
        (replace(make_status(0, Phase.FAILED, detail="memory"), hint="ask for more with -m"), "ask for more with -m"),
        (replace(make_status(0, Phase.FAILED, detail="no answer"), memory_mib=0), "pvc logs --source launcher"),
        (make_status(0, Phase.FAILED, detail="panicked; starts again in 2 s"), "by itself"),
        (make_status(0, Phase.PAUSED, detail="paused on request"), "pvc resume vm0"),
        (make_status(0, Phase.PAUSED, detail="paused: its disk in /x cannot be written: full"), "make room on n1"),
        (replace(make_status(0, Phase.BOOTING), since=NOW - 301), "pvc console vm0"),
        (replace(make_status(0, Phase.REACHABLE), since=NOW - 99, agent=SILENT), "pvc reset vm0"),
        (replace(make_status(0, Phase.REACHABLE), since=NOW - 99, agent=LOST), "pvc reset vm0"),
        (replace(make_status(0, Phase.REACHABLE), cloud_init=CloudInit(True, ("x",))), "cloud-init-output.log"),
        (replace(make_status(0, Phase.REACHABLE), cloud_init=CloudInit(True, (), ("x",))), "cloud-init-output.log"),
    ],
)
def test_each_trouble_has_a_next_step(status: VmStatus, step: str) -> None:
    trouble = find_trouble(status, NOW)
    assert trouble is not None
    assert step in trouble.step


@pytest.mark.parametrize(
    "status",
    [
        make_status(0, Phase.REACHABLE),
        make_status(0, Phase.STOPPED),
        replace(make_status(0, Phase.REACHABLE), cloud_init=CloudInit(True)),
        replace(make_status(0, Phase.BOOTING), since=NOW - 10),
        replace(make_status(0, Phase.BOOTING, port=None), since=NOW - 1000),
        # The agent of a guest that boots again comes later than its ssh; an image may have none at all.
        replace(make_status(0, Phase.REACHABLE), since=NOW - 9, agent=LOST),
        replace(make_status(0, Phase.REACHABLE), since=NOW - 999, agent=AgentStatus()),
    ],
)
def test_what_is_well(status: VmStatus) -> None:
    assert find_trouble(status, NOW) is None


def test_equal_troubles_are_told_once() -> None:
    vms = [make_status(rank, Phase.PAUSED, detail="paused on request") for rank in range(9)]
    assert format_troubles(scene_of(*vms)) == [
        "vm0, vm1, vm2 and 6 more: paused on request; pvc resume vm0 lets it go on"
    ]


def test_headline() -> None:
    scene = scene_of(make_status(0, Phase.REACHABLE), make_status(2, Phase.BOOTING), ends=NOW + 3700)
    assert format_headline(scene) == (
        "job 7 (pvc, web:2,db:1) · 2 VMs on 2 nodes: 1 booting, 1 reachable · ends in 1h01m"
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-3, "0s"), (59.9, "59s"), (60, "1m00s"), (3599, "59m59s"), (7260, "2h01m"), (360000, "4d04h")],
)
def test_ages(seconds: float, text: str) -> None:
    assert format_age(seconds) == text
