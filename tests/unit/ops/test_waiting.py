# SPDX-License-Identifier: Apache-2.0
"""What is waited for, and what VMs lack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pvc.errors import GuestError, UsageError
from pvc.model.vm import AgentStatus, Phase, VmStatus
from pvc.ops import waiting
from pvc.ops.remote import ExecResult
from pvc.ops.waiting import Condition, Goal, Lack, describe, parse_conditions, wait_for
from tests.unit.ops.worlds import make_status

AGENT = AgentStatus(connected=True)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("ssh", Condition(Goal.SSH)),
        ("agent", Condition(Goal.AGENT)),
        ("cloud-init", Condition(Goal.CLOUD_INIT)),
        ("port:080", Condition(Goal.PORT, "80")),
        ("cmd:test -e /a:b", Condition(Goal.COMMAND, "test -e /a:b")),
    ],
)
def test_conditions(text: str, wanted: Condition) -> None:
    assert parse_conditions([text]) == (wanted,)


@pytest.mark.parametrize(
    "text", ["", "sshd", "port", "port:", "port:0", "port:65536", "port:http", "cmd:", "ssh:22", "port:٣"]
)
def test_nonsense(text: str) -> None:
    with pytest.raises(UsageError, match="nothing to wait for"):
        parse_conditions([text])


class Looks:
    """What the supervisors say, look after look; the last one is for ever."""

    def __init__(self, *looks: Sequence[VmStatus]) -> None:
        self._looks = list(looks)

    def __call__(self, _control: Any, ranks: Sequence[int], **_: Any) -> list[VmStatus]:
        look = self._looks.pop(0) if len(self._looks) > 1 else self._looks[0]
        return [vm for vm in look if vm.rank in ranks]


class Asked:
    """What guests answer when they are asked anew: so many times nothing, then the answer."""

    def __init__(self, refusals: int) -> None:
        self._refusals = refusals

    def __call__(self, _control: Any, rank: int, _timeout_s: float) -> None:
        self._refusals -= rank == 0
        if rank == 0 and self._refusals >= 0:
            raise GuestError("nobody is there")


def wait(
    monkeypatch: pytest.MonkeyPatch, looks: Looks, *goals: str, timeout_s: float = 60.0, refusals: int = 0
) -> list[str]:
    monkeypatch.setattr(waiting, "read_status", looks)
    for name in "check_ssh", "check_agent":
        monkeypatch.setattr(waiting, name, Asked(refusals))
    monkeypatch.setattr(waiting, "_POLL_S", 0.0)
    said: list[str] = []

    def tell(lacks: Any) -> None:
        said.append(describe(lacks, 2))

    wait_for(None, (0, 1), parse_conditions(goals), timeout_s, on_progress=tell)  # type: ignore[arg-type]
    return said


def test_each_look_tells_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    booting = make_status(0, Phase.BOOTING, detail="runs")
    ready = replace(make_status(1, Phase.REACHABLE), agent=AGENT)
    looks = Looks(
        (make_status(0, Phase.NETWORK), make_status(1, Phase.BOOTING, detail="runs")),
        (booting, ready),
        (replace(booting, agent=AGENT), ready),
        (replace(make_status(0, Phase.REACHABLE), agent=AGENT), ready),
    )
    assert wait(monkeypatch, looks, "ssh", "agent") == [
        "0 of 2 ready; vm0: is not started yet (network); vm1: has no ssh yet (runs)",
        "1 of 2 ready; vm0: has no ssh yet (runs)",
        "1 of 2 ready; vm0: has no ssh yet (runs)",
        "2 of 2 ready",
    ]


@pytest.mark.parametrize(
    ("goal", "text"),
    [
        ("ssh", "vm0: does not answer ssh any more (nobody is there)"),
        ("agent", "vm0: has an agent that does not answer (nobody is there)"),
    ],
)
def test_guests_are_asked_anew(monkeypatch: pytest.MonkeyPatch, goal: str, text: str) -> None:
    """A guest that was reachable once may have hung since."""
    looks = Looks([replace(make_status(rank, Phase.REACHABLE), agent=AGENT) for rank in (0, 1)])
    assert wait(monkeypatch, looks, goal, refusals=1) == [f"1 of 2 ready; {text}", "2 of 2 ready"]
    with pytest.raises(GuestError, match="nobody is there"):
        wait(monkeypatch, looks, goal, refusals=99, timeout_s=0)


FAILED = '{"v1": {"modules-final": {"errors": ["no such package"], "finished": 1.0}, "stage": null}}'
WARNS = '{"v1": {"init": {"errors": [], "recoverable_errors": {"WARNING": ["what is that?"]}}, "stage": null}}'


@pytest.mark.parametrize(
    ("said", "told", "warned"),
    [
        ("status: done\n{}", None, ""),
        ("status: disabled", None, ""),
        (f"status: done\n{WARNS}", None, "vm0: cloud-init warns: what is that?"),
        (f"status: error\n{FAILED}", "vm0: cloud-init failed: no such package$", ""),
        ("status: error", "vm0: cloud-init says 'error'$", ""),
        ("none", "vm0: has no cloud-init$", ""),
        ("running", r"vm0: cloud-init says 'running' \(after", ""),
        ("", r"vm0: cloud-init says 'nothing' \(after", ""),
    ],
)
def test_what_cloud_init_says_of_itself(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, said: str, told: str | None, warned: str
) -> None:
    result = ExecResult("vm0", 0, said.encode(), b"")
    monkeypatch.setattr(waiting, "run_command", lambda *_: [result])
    looks = Looks([replace(make_status(0, Phase.REACHABLE), agent=AGENT)])
    if told is None:
        wait(monkeypatch, looks, "cloud-init")
    else:
        with pytest.raises(GuestError, match=told):
            wait(monkeypatch, looks, "cloud-init", timeout_s=0 if "after" in told else 60)
    assert warned in caplog.text


@pytest.mark.parametrize("goal", ["agent", "cloud-init", "port:80", "cmd:true"])
def test_a_silent_agent_is_no_agent(monkeypatch: pytest.MonkeyPatch, goal: str) -> None:
    silent = replace(make_status(0, Phase.REACHABLE), agent=replace(AGENT, problem="the guest does not answer"))
    with pytest.raises(GuestError, match=r"vm0: has a silent agent \(the guest does not answer\)"):
        wait(monkeypatch, Looks([silent]), goal, timeout_s=0)


@pytest.mark.parametrize(
    ("status", "why"),
    [
        (make_status(0, Phase.FAILED, detail="QEMU died"), r"vm0: has failed \(QEMU died\)$"),
        (make_status(0, Phase.STOPPED, detail="stopped on request"), "vm0: is stopped"),
        (make_status(0, Phase.PAUSED, detail="paused on request"), "vm0: is paused"),
        (make_status(0, Phase.BOOTING, port=None), "no port leads to its ssh"),
    ],
)
def test_what_will_never_be_ready_ends_it(monkeypatch: pytest.MonkeyPatch, status: VmStatus, why: str) -> None:
    with pytest.raises(GuestError, match=why):
        wait(monkeypatch, Looks((status, make_status(1, Phase.REACHABLE))), "ssh")


def test_the_end_of_the_time_tells_all(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(GuestError, match=r"vm0, vm1: has no agent yet \(after 0 s\)") as caught:
        wait(monkeypatch, Looks([make_status(rank, Phase.BOOTING) for rank in (0, 1)]), "agent", timeout_s=0)
    assert caught.value.hint == "look at one: pvc logs vm0 -n 20"


def test_many_vms_are_told_as_groups() -> None:
    lacks = {rank: Lack("has no agent yet") for rank in range(500)} | {500: Lack("is paused")}
    assert (
        describe(lacks, 512)
        == "11 of 512 ready; vm0, vm1, vm2, vm3, vm4 and 495 more: has no agent yet; vm500: is paused"
    )


@pytest.mark.allow_run("another interpreter")
def test_importing_pvc_is_cheap() -> None:
    import subprocess
    import sys

    root = Path(__file__).resolve().parents[3]
    code = "import sys, pvc; print(sorted(name for name in sys.modules if name.startswith('pvc'))); pvc.Cluster"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "['pvc']\n"
