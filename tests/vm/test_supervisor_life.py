# SPDX-License-Identifier: Apache-2.0
"""Orders to single VMs of a cluster that goes on: reset, pause, resume, stop, start."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from guests import Guest, build_guest
from harness import HYPERVISORS, Console, Launched, free_port, guest_template, supervised, user_net

from pvc.model.event import EventKind
from pvc.model.node import VmGrant
from pvc.model.vm import Disk, Phase, Restart
from tests.waits import wait_until

pytestmark = pytest.mark.vm
PORT = free_port()


@pytest.fixture(scope="module")
def guest() -> Guest:
    return build_guest()


@pytest.fixture(params=HYPERVISORS)
def hypervisor(request: pytest.FixtureRequest) -> str:
    """What starts QEMU."""
    found: str = request.param
    return found


@pytest.fixture
def cluster(tmp_path: Path, guest: Guest, hypervisor: str) -> Iterator[Launched]:
    """vm0 has a disk and an ssh port; vm1 has neither, and vm2 never starts."""
    path = tmp_path / "base.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "64M"], check=True)
    disk = Disk(os.fspath(path), "qcow2", 64 << 20)
    templates = [
        guest_template(guest, disk, custom_args=user_net(PORT), hypervisor=hypervisor),
        guest_template(guest, name="other", hypervisor=hypervisor),
        guest_template(guest, name="noqemu", qemu_bin="qemu-system-nothing", hypervisor=hypervisor),
    ]
    grants = [VmGrant(0, (), {"22": PORT}), VmGrant(1, (), {}), VmGrant(2, (), {})]
    with supervised(tmp_path, *templates, vms=grants) as cluster:
        for rank, phase in enumerate((Phase.BOOTING, Phase.BOOTING, Phase.FAILED)):
            cluster.wait_phase(rank, phase)
        yield cluster


def order(cluster: Launched, name: str, *ranks: int, **more: Any) -> list[dict[str, Any]]:
    answer = cluster.ask(op="order", order=name, vms=list(ranks), **more)
    assert answer["ok"], answer
    results: list[dict[str, Any]] = answer["vms"]
    return results


def phases(cluster: Launched) -> list[str]:
    return [vm["phase"] for vm in cluster.ask(op="status")["vms"]]


def test_a_vm_stops_and_starts_with_its_disk(cluster: Launched) -> None:
    cluster.wait_phase(0, Phase.REACHABLE)
    pids = cluster.qemu_pids()
    with cluster.connect() as connection:
        console = Console(connection, 0)
        console.wait_prompt()
        console.send(b"echo kept-by-the-disk | dd of=/dev/vda conv=fsync; echo wr''itten\n")
        console.wait(b"written")
        (paused,) = order(cluster, "pause", 0)
        assert (paused["phase"], paused["detail"], paused["error"]) == ("paused", "paused on request", None)
        assert phases(cluster)[0] == "paused"
        assert order(cluster, "pause", 0)[0]["error"] is None
        (refused,) = order(cluster, "reset", 0)
        assert (refused["error"], refused["hint"]) == ("vm0 is paused", "first: pvc resume vm0")
        assert order(cluster, "resume", 0)[0]["phase"] == "reachable"
        console.send(b"echo still-$((6*7))\n")
        console.wait(b"still-42")

        console.data = b""
        (reset,) = order(cluster, "reset", 0)
        assert (reset["phase"], reset["detail"]) == ("booting", "was reset, no ssh answer yet")
        console.wait(b"GUEST-READY", 150)
        console.wait_prompt()

        # A guest that does not listen is switched off; one that does has its time.
        results = order(cluster, "stop", 0, 1, grace_s=0.5)
        assert {result["detail"] for result in results} == {
            "stopped on request, switched off: no power-down within 0.5 s"
        }
    assert phases(cluster) == ["stopped", "stopped", "failed"]
    assert not set(pids) & set(cluster.qemu_pids())
    assert cluster.process.poll() is None
    assert order(cluster, "stop", 0)[0]["error"] is None
    (refused,) = order(cluster, "pause", 0)
    assert refused["error"] == "cannot pause vm0: it is stopped"
    assert refused["hint"] == "start it with pvc start vm0"

    started, failed = order(cluster, "start", 0, 2)
    assert (started["phase"], started["error"]) == ("booting", None)
    assert failed["error"].startswith("vm2 did not start: template noqemu: there is no qemu-system-nothing")
    wait_until(lambda: phases(cluster)[0] == "reachable", 150)
    assert phases(cluster)[1:] == ["stopped", "failed"]
    with cluster.connect() as connection:
        console = Console(connection, 0)
        console.wait_prompt()
        console.send(b"head -c 17 /dev/vda; echo\n")
        console.wait(b"kept-by-the-disk")
        console.send(b"(sleep 2; poweroff -f) &\n")
        (stopped,) = order(cluster, "stop", 0, grace_s=60)
        assert stopped["detail"] == "stopped on request, its guest powered down"
    assert cluster.ask(op="stop", grace_s=0) == {"ok": True}
    assert cluster.wait_end() == 0
    assert cluster.events[-1].kind is EventKind.ENDED


def test_a_crashed_vm_starts_again_and_a_cluster_ends_in_the_middle(cluster: Launched) -> None:
    victim = next(p for p in cluster.qemu_pids() if "vm1" in Path(f"/proc/{p}/cmdline").read_text().split("\0")[2])
    order(cluster, "pause", 1)
    os.kill(victim, signal.SIGKILL)
    cluster.wait_phase(1, Phase.FAILED)
    assert order(cluster, "start", 1)[0]["phase"] == "booting"
    assert victim not in cluster.qemu_pids()
    order(cluster, "stop", 1)
    order(cluster, "pause", 0)
    # The launcher goes while one VM is stopped, one paused and one failed.
    assert cluster.process.stdin is not None
    cluster.process.stdin.close()
    assert cluster.wait_end() == 0
    assert cluster.events[-1].kind is EventKind.ENDED


def test_a_guest_that_panics_is_quoted_and_starts_again(tmp_path: Path, guest: Guest, hypervisor: str) -> None:
    templates = [
        guest_template(guest, restart=Restart.ON_FAILURE, hypervisor=hypervisor),
        guest_template(
            guest,
            name="never",
            restart=Restart.ALWAYS,
            custom_args=("-device", "no-such-device"),
            hypervisor=hypervisor,
        ),
    ]
    with supervised(tmp_path, *templates) as cluster:
        cluster.wait_phase(0, Phase.BOOTING)
        with cluster.connect() as connection:
            console = Console(connection, 0)
            console.wait_prompt()
            console.send(b"echo 7 > /proc/sys/kernel/printk; echo c > /proc/sysrq-trigger\n")
            failed = cluster.wait_phase(0, Phase.FAILED)
            assert failed.detail == "the guest's kernel panicked; starts again in 1 s"
            assert any("Kernel panic" in line for line in failed.last_words), failed.last_words
        # What kept a VM from running is still there: it is not tried again.
        assert cluster.wait_phase(1, Phase.FAILED).detail.endswith("'no-such-device' is not a valid device model name")
        wait_until(lambda: phases(cluster) == ["booting", "failed"], 120)
        assert cluster.ask(op="status")["vms"][0]["restarts"] == 1
        # QEMU's own crash is another matter; and whoever stops a VM that waits for its restart means it.
        os.kill(cluster.qemu_pids()[0], signal.SIGABRT)
        wait_until(lambda: phases(cluster)[0] == "failed", 120)
        status = cluster.ask(op="status")["vms"][0]
        assert status["detail"] == "QEMU was killed by SIGABRT; starts again in 2 s"
        assert order(cluster, "stop", 0)[0]["detail"] == "stopped on request, before it started again"
        time.sleep(3)
        assert phases(cluster) == ["stopped", "failed"]
        assert order(cluster, "start", 0)[0]["phase"] == "booting"


def test_nonsense_is_refused_and_touches_nothing(cluster: Launched) -> None:
    for request in (
        {},
        {"order": "explode", "vms": [0]},
        {"order": ["stop"], "vms": [0]},
        {"order": "stop"},
        {"order": "stop", "vms": []},
        {"order": "stop", "vms": "vm0"},
        {"order": "stop", "vms": [0, 3]},
        {"order": "stop", "vms": [0, True]},
        {"order": "stop", "vms": [0, {}]},
        {"order": "stop", "vms": [0], "grace_s": "1"},
        {"order": "stop", "vms": [0], "grace_s": 1e9},
    ):
        answer = cluster.ask(op="order", **request)
        assert (answer["ok"], answer["exit_code"]) == (False, 2)
    assert phases(cluster)[1] == "booting"
