# SPDX-License-Identifier: Apache-2.0
"""Events in, views out."""

from __future__ import annotations

import dataclasses
import io

import pytest

from pvc.errors import ConfigError, GuestError, HostError, JobError, PvcError, StateError
from pvc.model.cluster import NodeShare, Placement
from pvc.model.event import Event, EventKind
from pvc.model.request import Size
from pvc.model.vm import Phase
from pvc.ops.display import Display, render
from pvc.ops.progress import Progress
from pvc.ops.supervisors import parse_lost_tasks
from tests.unit.ops.worlds import listening, make_progress, vm_event


def test_a_cluster_runs_when_all_nodes_listen_and_all_vms_boot() -> None:
    progress = make_progress()
    for event in (listening("n1"), vm_event(0, Phase.BOOTING), vm_event(1, Phase.BOOTING), vm_event(2, Phase.NETWORK)):
        progress.apply(event)
        assert not progress.is_running
    progress.apply(vm_event(2, Phase.BOOTING))
    assert not progress.is_running
    progress.apply(listening("n2"))
    assert progress.is_running
    assert not progress.is_settled
    for rank in range(3):
        progress.apply(vm_event(rank, Phase.REACHABLE))
    assert progress.is_settled


def test_news_for_readers_of_lines() -> None:
    progress = make_progress()
    news = [progress.apply(vm_event(rank, Phase.BOOTING, time=102.0)) for rank in range(3)]
    assert news == [[], [], ["3 VMs: booting after 2.0 s"]]
    assert progress.apply(vm_event(0, Phase.REACHABLE, time=109.5)) == ["vm0 on n1 is reachable after 9.5 s"]
    assert progress.apply(vm_event(0, Phase.REACHABLE, time=110.5)) == []
    assert progress.apply(vm_event(1, Phase.FAILED, detail="QEMU died")) == ["vm1 on n1 failed: QEMU died"]
    panic = dataclasses.replace(vm_event(2, Phase.FAILED, detail="panic"), last_words=("not", "syncing"))
    assert progress.apply(panic) == ["vm2 on n2 failed: panic\n  vm2 said: not\n  vm2 said: syncing"]


def test_a_notice_is_told_once_with_all_its_nodes() -> None:
    progress = make_progress()
    for node in ("n1", "n2"):
        assert progress.apply(Event(EventKind.NOTICE, node, 101.0, detail=f"no KVM on {node}: slow")) == []
    assert progress.take_notices() == ["no KVM on n1, n2: slow"]
    assert progress.take_notices() == []


def test_an_event_of_a_stranger_changes_nothing() -> None:
    progress = make_progress()
    progress.apply(vm_event(0, Phase.BOOTING))
    for event in (
        Event(EventKind.VM, "n2", 101.0, rank=0, phase=Phase.FAILED),
        Event(EventKind.VM, "n1", 101.0, rank=77, phase=Phase.FAILED),
        Event(EventKind.VM, "n1", 101.0, rank=-1, phase=Phase.FAILED),
        Event(EventKind.ERROR, "n9", 101.0, detail="x"),
    ):
        assert progress.apply(event) == []
    assert [vm.phase for vm in progress.vms] == [Phase.BOOTING, Phase.WAITING, Phase.WAITING]
    assert progress.find_error() is None


@pytest.mark.parametrize("kind", [StateError, ConfigError, JobError])
def test_a_nodes_error_is_the_clusters(kind: type[PvcError]) -> None:
    progress = make_progress()
    for node in ("n2", "n1"):
        progress.apply(Event(EventKind.ERROR, node, 101.0, detail="no etcd", hint="start it", exit_code=kind.exit_code))
    error = progress.find_error()
    assert type(error) is kind
    assert str(error) == "n1 and 1 more: no etcd"
    assert error.hint == "start it"
    assert progress.is_dead


def test_a_supervisor_that_dies_before_it_listens_ends_the_launch() -> None:
    progress = make_progress()
    progress.lose_node("n2", "Killed", 103.0)
    error = progress.find_error()
    assert isinstance(error, HostError)
    assert "n2" in str(error)


def test_a_supervisor_that_dies_later_takes_its_vms_only() -> None:
    progress = make_progress()
    for event in (listening("n1"), listening("n2"), *(vm_event(rank, Phase.BOOTING) for rank in range(3))):
        progress.apply(event)
    news = progress.lose_node("n1", "Killed", 103.0)
    assert news == ["2 VMs on n1 failed: the supervisor has ended: Killed"]
    assert progress.lose_node("n1", "Killed", 104.0) == []
    assert progress.find_error() is None
    assert [vm.phase for vm in progress.vms] == [Phase.FAILED, Phase.FAILED, Phase.BOOTING]
    assert not progress.is_dead
    progress.lose_node("n2", "Killed", 105.0)
    assert progress.is_dead
    assert isinstance(progress.find_guest_error(), GuestError)


def test_stopped_means_that_all_supervisors_have_left() -> None:
    progress = make_progress()
    progress.apply(Event(EventKind.ENDED, "n1", 101.0))
    assert not progress.was_stopped
    progress.apply(Event(EventKind.ENDED, "n2", 101.0))
    assert progress.was_stopped


@pytest.mark.parametrize(
    ("line", "lost"),
    [
        ("srun: error: n2: task 1: Killed", [("n2", "Killed")]),
        (
            "srun: error: n[1,3]: tasks 0,2: Exited with exit code 7",
            [("n1", "Exited with exit code 7"), ("n3", "Exited with exit code 7")],
        ),
        ("srun: error: n[1-2]: tasks 0-1: Terminated", [("n1", "Terminated"), ("n2", "Terminated")]),
        ("srun: error: Node failure on n3", [("n3", "Node failure")]),
        ("srun: error: something else: happened", []),
        ("warning: n2: task 1: Killed", []),
    ],
)
def test_what_srun_says_of_lost_tasks(line: str, lost: list[tuple[str, str]]) -> None:
    assert parse_lost_tasks(line) == lost


def test_a_node_that_slurm_gave_up() -> None:
    progress = make_progress()
    for line in ("srun: error: n2: task 1: Killed", "srun: error: Node failure on n1"):
        for node, why in parse_lost_tasks(line):
            progress.lose_node(node, why, 101.0)
    assert progress.find_failed_nodes() == ["n1"]


def test_the_node_that_slurm_could_not_use_is_named() -> None:
    """And not the one whose supervisor Slurm killed for that."""
    progress = make_progress()
    said = (
        "srun: error: Task launch for StepId=7.0 failed on node n2: Job credential expired",
        "srun: error: Application launch failed: Job credential expired",
        "srun: error: n1: task 0: Killed",
    )
    for line in said:
        for node, why in parse_lost_tasks(line):
            progress.lose_node(node, why, 101.0)
    error = progress.find_error()
    assert str(error) == "n2: the supervisor has ended: Job credential expired"
    assert "clock" in (error.find_hint() or "")


def test_view_of_a_small_cluster() -> None:
    progress = make_progress()
    progress.apply(vm_event(0, Phase.REACHABLE, time=108.4))
    progress.apply(vm_event(1, Phase.BOOTING, time=101.0, detail="runs, no ssh answer yet"))
    progress.apply(vm_event(2, Phase.FAILED, time=102.0, detail="QEMU " + "x" * 200))
    assert render(progress, 110.0, colours=False)[0].endswith(
        " 3 VMs on 2 nodes · 1 booting · 1 reachable · 1 failed · 10.0 s"
    )
    lines = render(progress, 110.0, width=60, colours=False)
    assert lines[1] == "  vm0  n1  ●●● reachable    8.4 s"
    assert lines[2].startswith("  vm1  n1  ●●○ booting     10.0 s  runs, no ssh")
    assert lines[3].startswith("  vm2  n2  ○○○ failed       2.0 s  QEMU xxx")
    assert lines[3].endswith("…")
    assert all(len(line) <= 60 for line in lines)


def test_view_of_a_large_cluster_is_counts() -> None:
    placement = Placement((Size(1000, 1),), tuple(NodeShare(f"n{node}", node * 50, 50) for node in range(20)))
    progress = Progress.of(placement, ["web"] * 1000, 0.0)
    for rank in range(1000):
        progress.apply(Event(EventKind.VM, f"n{rank // 50}", 1.0, rank=rank, phase=Phase.BOOTING))
    progress.apply(Event(EventKind.VM, "n3", 2.0, rank=150, phase=Phase.FAILED, detail="no memory"))
    lines = render(progress, 3.0, colours=False)
    assert lines[0].endswith("1000 VMs on 20 nodes · 999 booting · 1 failed · 3.0 s")
    assert lines[1:] == ["  vm150 on n3: no memory"]


def test_colours_do_not_change_the_text() -> None:
    import re

    progress = make_progress()
    plain = render(progress, 101.0, colours=False)
    painted = render(progress, 101.0, colours=True)
    assert [re.sub(r"\033\[\d+m", "", line) for line in painted] == plain
    assert painted != plain


def test_ten_thousand_vms_are_no_matter() -> None:
    """Each event costs the same, however many VMs there are: 20,000 events would take minutes otherwise."""
    placement = Placement((Size(10_000, 1),), tuple(NodeShare(f"n{node}", node * 10, 10) for node in range(1000)))
    progress = Progress.of(placement, ["web"] * 10_000, 0.0)
    news = []
    for phase in (Phase.NETWORK, Phase.BOOTING):
        for rank in range(10_000):
            news += progress.apply(Event(EventKind.VM, f"n{rank // 10}", 1.0, rank=rank, phase=phase))
    assert news == ["10000 VMs: network after 1.0 s", "10000 VMs: booting after 1.0 s"]
    assert progress.counts[Phase.BOOTING] == 10_000


class Screen(io.StringIO):
    """A terminal that keeps what it is sent."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("name", "value", "live", "coloured"),
    [("NO_COLOR", "1", True, False), ("TERM", "dumb", False, False), ("A", "1", True, True)],
)
def test_colours_and_redrawing_are_for_terminals_that_want_them(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, live: bool, coloured: bool
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv(name, value)
    screen = Screen()
    Display(screen).update(make_progress(), force=True)
    assert ("\033[K" in screen.getvalue()) is live
    assert ("\033[2m" in screen.getvalue()) is coloured
