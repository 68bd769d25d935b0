# SPDX-License-Identifier: Apache-2.0
"""What only VMs through libvirt have: virsh, the site's hook, and a daemon that may crash beside them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from guests import agent_guest
from harness import AS_USER, ROOT, Launched, guest_template, is_alive, supervised
from reached import reached

from pvc.model.vm import Phase
from tests.waits import wait_until

pytestmark = pytest.mark.vm

HOOK = """#!/bin/sh
[ "$PVC_TEMPLATE" = refused ] && { echo "no such VMs here" >&2; exit 3; }
[ "$PVC_TEMPLATE" = deaf ] && exec sed '/<channel /,/<\\/channel>/d'
exec sed "s,<memory ,<title>$PVC_VM of the site</title><memory ,"
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Launched]:
    """vm0 runs; the site's hook refuses vm1, and libvirt has no machine like vm2's, vm3 loses a channel."""
    hook = tmp_path / "hook"
    hook.write_text(HOOK)
    hook.chmod(0o755)
    guest = agent_guest()
    templates = [
        guest_template(guest, hypervisor="libvirt"),
        guest_template(guest, name="refused", hypervisor="libvirt"),
        guest_template(guest, name="small", hypervisor="libvirt", machine_type="microvm"),
        guest_template(guest, name="deaf", hypervisor="libvirt"),
    ]
    with supervised(tmp_path, *templates, libvirt_hook=os.fspath(hook)) as cluster:
        yield cluster


def status(cluster: Launched) -> dict[str, Any]:
    found: dict[str, Any] = cluster.ask(op="status")["vms"][0]
    return found


def virsh(cluster: Launched, *words: str) -> str:
    argv = [*AS_USER, "virsh", "-q", "-c", status(cluster)["libvirt_uri"], *words]
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=300).stdout


def find_daemon(cluster: Launched) -> list[int]:
    pids = cluster.children()
    return [pid for pid in pids if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"libvirtd\0")]


def test_virsh_and_hook_and_a_daemon_that_dies(cluster: Launched, tmp_path: Path) -> None:
    cluster.wait_phase(0, Phase.BOOTING)
    refused = cluster.wait_phase(1, Phase.FAILED)
    assert "the site's libvirt-hook refused vm1" in refused.detail
    assert "no such VMs here" in refused.detail
    impossible = cluster.wait_phase(2, Phase.FAILED)
    assert (impossible.detail, impossible.hint) == ("template small: libvirt has no microvm", "use hypervisor: qemu")

    deaf = cluster.wait_phase(3, Phase.FAILED)
    assert "QEMU of vm3 has not connected its console and channels" in deaf.detail
    assert deaf.hint == "the site's libvirt-hook must leave them in the domain"

    assert virsh(cluster, "list", "--all", "--name").split() == ["vm0"]
    assert "<title>vm0 of the site</title>" in virsh(cluster, "dumpxml", "vm0")
    virsh(cluster, "suspend", "vm0")
    wait_until(lambda: status(cluster)["phase"] == "paused")
    virsh(cluster, "resume", "vm0")
    wait_until(lambda: status(cluster)["phase"] == "booting")
    # Its agent's channel is a socket of the VM's, as its console.
    wait_until(lambda: status(cluster)["agent"]["connected"], 150)
    dump = {"execute": "dump-guest-memory", "arguments": {"paging": False, "protocol": "file:/dev/null"}}
    for command in ({"qmp": dump}, {"hmp": "dump-guest-memory /dev/null"}):
        assert cluster.ask(op="monitor", vm=0, **command)["hint"] == "use pvc dump"

    # A crash of libvirtd costs no VM: the next one takes it over.
    (qemu,), (daemon,) = cluster.qemu_pids(), find_daemon(cluster)
    os.kill(daemon, signal.SIGKILL)
    wait_until(lambda: cluster.ask(op="monitor", vm=0, hmp="info status")["ok"], 120)
    assert cluster.qemu_pids() == [qemu]
    assert find_daemon(cluster) not in ([], [daemon])
    assert status(cluster)["agent"]["connected"]
    virsh(cluster, "suspend", "vm0")
    wait_until(lambda: status(cluster)["phase"] == "paused")
    os.kill(qemu, signal.SIGKILL)
    assert cluster.wait_phase(0, Phase.FAILED).detail.startswith("QEMU was killed by SIGKILL")
    assert cluster.ask(op="order", order="start", vms=[0])["vms"][0]["error"] is None

    pids = cluster.children()
    assert cluster.process.stdin is not None
    cluster.process.stdin.close()
    assert cluster.wait_end() == 0
    assert not any(is_alive(pid) for pid in pids)
    assert os.listdir(tmp_path / "run") == []
    assert not (tmp_path / ".config").exists()


def test_commands(tmp_path: Path) -> None:
    """As through QEMU's own port; and its end is told by an event."""
    with reached(tmp_path / "cluster", 1, hypervisor="libvirt") as cluster:
        ran = cluster.run("sh", "-c", "hostname; echo err >&2; exit 3")
        assert (ran.codes, ran.out(), ran.err()) == ([3], "vm0\n", "err\n")
        assert len(cluster.run("head", "-c", "2000000", "/dev/zero").out()) == 2_000_000
        ran = cluster.run("sh", "-c", "kill -9 $PPID; sleep 1000")
        assert ran.outcomes[0].error == "the agent of vm0 has ended"


def test_the_other_driver_needs_no_libvirt() -> None:
    code = "import sys, pvc.supervisor.main; sys.exit('libvirt' in sys.modules)"
    environ = os.environ | {"PYTHONPATH": os.fspath(ROOT)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environ)
