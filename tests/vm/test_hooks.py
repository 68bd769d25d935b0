# SPDX-License-Identifier: Apache-2.0
"""Hooks around a VM's life: what they learn, when they come, and those that fail or hang."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from guests import build_guest
from harness import free_port, guest_template, is_alive, supervised, user_net

from pvc.model.event import EventKind
from pvc.model.node import VmGrant
from pvc.model.vm import Hooks, Phase
from tests.waits import wait_until

pytestmark = pytest.mark.vm

NOTE = """#!/bin/sh
echo "$PVC_HOOK $PVC_VM $PVC_RANK $PVC_TEMPLATE $PVC_NODE $PVC_JOB_ID $1 ${PVC_DETAIL-none}" >> "$(dirname "$0")/notes"
echo "said by $PVC_HOOK"
echo "no word of ${PVC_SECRET-a secret}" >&2
"""
HANG = """#!/bin/sh
echo $$ > "$(dirname "$0")/hanging"
sleep 3600
"""


def script(path: Path, text: str) -> str:
    path.write_text(text)
    path.chmod(0o755)
    return os.fspath(path)


def test_hooks_come_in_their_order_and_fail_as_they_are_meant_to(tmp_path: Path) -> None:
    note, hang = script(tmp_path / "note", NOTE), script(tmp_path / "hang", HANG)
    missing = os.fspath(tmp_path / "missing")
    hooks = Hooks((note, "of-%{vm_rank}"), (note, "x"), (note, "x"), (note, "x"))
    port = free_port()
    templates = [
        guest_template(build_guest(), name="good", hooks=hooks, custom_args=user_net(port)),
        guest_template(build_guest(), name="bad", hooks=Hooks(before_start=("/bin/sh", "-c", "echo no room; exit 3"))),
        guest_template(build_guest(), name="slow", hooks=Hooks(before_start=(hang,), timeout_s=1)),
        guest_template(build_guest(), name="late", hooks=Hooks(before_stop=("false",), after_stop=(missing,))),
    ]
    run_dir = tmp_path / "run"
    grants = [VmGrant(0, (), {"22": port}), *(VmGrant(rank, (), {}) for rank in (1, 2, 3))]
    notes = tmp_path / "notes"
    with supervised(tmp_path, *templates, vms=grants) as cluster:
        failed = cluster.wait_phase(1, Phase.FAILED)
        assert failed.detail == "hook before-start ended with exit code 3"
        assert failed.hint == "what it said: pvc logs --source hooks vm1"
        assert cluster.wait_phase(2, Phase.FAILED).detail == "hook before-start did not end within 1 s, and was killed"
        assert not is_alive(int((tmp_path / "hanging").read_text()))
        cluster.wait_phase(0, Phase.REACHABLE)
        wait_until(lambda: "reachable" in notes.read_text(), 120)
        cluster.wait_phase(3, Phase.BOOTING)
        following = cluster.connect()
        following.sendall(json.dumps({"op": "log", "vm": 0, "source": "hooks", "follow": True}).encode() + b"\n")
        followed = following.makefile("rb")
        assert json.loads(followed.readline()) == {"ok": True}
        while not followed.readline().endswith(b" reachable: done\n"):
            pass
        answers = cluster.ask(op="order", order="stop", vms=[0, 3], grace_s=1)["vms"]
        said = [followed.readline().decode().split(" ", 1) for _ in range(8)]
        assert [line[-1] for line in said if line[0] == "said"] == ["by before-stop\n", "by after-stop\n"]
        assert said[-1][1] == "after-stop: done\n"
        followed.close()
        following.close()
        assert [each["phase"] for each in answers] == ["stopped", "stopped"]
        assert notes.read_text().splitlines() == [
            "before-start vm0 0 good n1 12 of-0 none",
            "reachable vm0 0 good n1 12 x none",
            "before-stop vm0 0 good n1 12 x none",
            "after-stop vm0 0 good n1 12 x stopped: stopped on request, switched off: no power-down within 1 s",
        ]
        log = (run_dir / "vm0/hooks.log").read_text()
        assert [line for line in log.splitlines() if line.startswith("said")] == [
            f"said by {name}" for name in ("before-start", "reachable", "before-stop", "after-stop")
        ]
        assert "no word of a secret" in log
        late = (run_dir / "vm3/hooks.log").read_text()
        assert "before-stop: ended with exit code 1" in late
        assert "after-stop: ended with exit code" in late
        assert "no room" in (run_dir / "vm1/hooks.log").read_text()


def test_a_vm_goes_on_when_its_hook_fails_and_a_hanging_one_holds_nobody(tmp_path: Path) -> None:
    hang = script(tmp_path / "hang", HANG)
    port = free_port()
    templates = [
        guest_template(build_guest(), name="a", hooks=Hooks(reachable=("false",)), custom_args=user_net(port)),
        guest_template(build_guest(), name="b", hooks=Hooks(before_start=(hang,), timeout_s=3000)),
    ]
    grants = [VmGrant(0, (), {"22": port}), VmGrant(1, (), {})]
    with supervised(tmp_path, *templates, vms=grants) as cluster:
        event = cluster.wait_event(EventKind.VM, rank=0, detail="hook reachable ended with exit code 1")
        assert event.phase is Phase.REACHABLE
        wait_until((tmp_path / "hanging").exists, 120)
        pid = int((tmp_path / "hanging").read_text())
        assert cluster.ask(op="stop", grace_s=0) == {"ok": True}
        assert cluster.wait_end(60) == 0
        assert not is_alive(pid)
