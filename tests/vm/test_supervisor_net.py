# SPDX-License-Identifier: Apache-2.0
"""Guests on taps that came as descriptors: address, host name and ssh's port through the node's network."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from bridge import ENTER, GATEWAY, MACS, NAMESPACE, tap_network, vm_grants
from guests import build_guest
from harness import HYPERVISORS, Launched, Supervised, guest_template, supervised

from pvc.host import netns
from pvc.images import build, recipe
from pvc.model.cluster import ClusterKeys
from pvc.model.event import EventKind
from pvc.model.vm import DirectBoot, Disk, Phase, VmTemplate
from pvc.testbed.images import find_cache
from tests.waits import wait_until

pytestmark = pytest.mark.vm

USER_DATA = """#cloud-config
write_files:
- path: /etc/marked-by-user-data
  content: yes, it is
runcmd:
- [touch, /var/lib/ran]
"""
GROWN = 11 << 30


@pytest.fixture
def taps(tmp_path: Path) -> Iterator[list[int]]:
    with tap_network(tmp_path) as fds:
        yield fds


def launch(
    tmp_path: Path, taps: list[int], templates: list[VmTemplate], memory_mib: int
) -> AbstractContextManager[Supervised]:
    vms = vm_grants()[: len(templates)]
    return supervised(tmp_path, *templates, vms=vms, taps=taps, address=GATEWAY, wrapper=ENTER, memory_mib=memory_mib)


def read_log(tmp_path: Path, rank: int, *, starts: int) -> str:
    """What a guest has said, once all is said of so many starts; its port answers a moment before."""
    path = tmp_path / f"run/vm{rank}/console.log"
    wait_until(lambda: path.read_text().count("GUEST-READY") == starts, lack=f"vm{rank} has not come up")
    return path.read_text()


def ask(cluster: Launched, **request: Any) -> dict[str, Any]:
    """A request to the supervisor, which is in the network's namespace."""
    return netns.run_inside(NAMESPACE, lambda: cluster.ask(**request))


@pytest.mark.parametrize("hypervisor", HYPERVISORS)
def test_guests_on_taps(tmp_path: Path, taps: list[int], hypervisor: str) -> None:
    templates = [guest_template(build_guest(), name=name, hypervisor=hypervisor) for name in ("one", "two")]
    with launch(tmp_path, taps, templates, 416) as cluster:
        for rank in range(2):
            cluster.wait_phase(rank, Phase.REACHABLE, timeout_s=180)
            log = read_log(tmp_path, rank, starts=1)
            assert f"GUEST-IS vm{rank} " in log
            assert f"GUEST-ADDRESS eth0 10.9.0.{rank + 1}/24" in log
            assert "GUEST-LINK eth0 1400 " + MACS[rank] in log
        # QEMU had the only descriptor: another start needs the VM's own taps again, and no other's.
        assert ask(cluster, op="order", order="stop", vms=[1])["vms"][0]["phase"] == "stopped"
        assert ask(cluster, op="order", order="start", vms=[1])["vms"][0]["error"] is None
        assert cluster.node.requests == [{"op": "attach", "job": 12}, {"op": "attach", "job": 12, "vm": 1}]
        wait_until(lambda: ask(cluster, op="status")["vms"][1]["phase"] == "reachable", 180)
        assert ask(cluster, op="status")["vms"][0]["phase"] == "reachable"
        assert read_log(tmp_path, 1, starts=2).count("GUEST-ADDRESS eth0 10.9.0.2/24") == 2
        assert cluster.process.stdin is not None
        cluster.process.stdin.close()
        assert cluster.wait_end() == 0
        assert cluster.events[-1].kind is EventKind.ENDED


def test_cloud_init_takes_the_seed(tmp_path: Path, taps: list[int]) -> None:
    """The Debian image: keys, host key, name, network and user data arrive, a larger disk, and a panic is told."""
    wanted = recipe.load_recipe(recipe.find_recipe("debian"))
    with build.built(wanted, print, cache=find_cache() / "images") as image:
        boot = DirectBoot(os.fspath(image.kernel), os.fspath(image.initrd), wanted.append)
        disk = Disk(os.fspath(image.disk), "qcow2", GROWN)
        # The initrd has to look for its root, for the first of virtio's disks is the seed.
        template = VmTemplate("debian", disk, boot, "nat", user_data=USER_DATA, disk_model="virtio-scsi")
        with launch(tmp_path, taps, [template], 768) as cluster:
            cluster.wait_phase(0, Phase.REACHABLE, timeout_s=300)
            assert run_ssh(tmp_path, cluster.keys, "hostname").stdout.strip() == "vm0"
            facts = run_ssh(tmp_path, cluster.keys, "ip -4 -br address show dev eth0; cat /sys/class/net/eth0/mtu")
            assert "10.9.0.1/24" in facts.stdout
            assert facts.stdout.split()[-1] == "1400"
            done = run_ssh(
                tmp_path,
                cluster.keys,
                "cloud-init status --wait; cat /run/cloud-init/status.json /etc/marked-by-user-data",
            )
            assert "status: done" in done.stdout, done.stdout.replace(".....", "")
            assert "yes, it is" in done.stdout
            assert cluster.wait_event(EventKind.LISTENING).host == GATEWAY
            # Blocks that ext4 needs for itself are not counted.
            blocks, size = run_ssh(tmp_path, cluster.keys, "stat -f -c '%b %S' /").stdout.split()
            assert GROWN * 0.97 < int(blocks) * int(size) <= GROWN
            run_ssh(tmp_path, cluster.keys, "(sleep 1; echo c > /proc/sysrq-trigger) > /dev/null 2>&1 &")
            assert cluster.wait_phase(0, Phase.FAILED, timeout_s=300).detail == "the guest's kernel panicked"


def run_ssh(tmp_path: Path, keys: ClusterKeys, command: str) -> subprocess.CompletedProcess[str]:
    """Run a command in vm0 as root, with the cluster's key, accepting the cluster's host key only."""
    known = tmp_path / "known_hosts"
    known.write_text(f"[{GATEWAY}]:4001 {keys.host_key_pub}")
    options = ("StrictHostKeyChecking=yes", f"UserKnownHostsFile={known}", "BatchMode=yes", "ConnectTimeout=60")
    words = [word for option in options for word in ("-o", option)]
    argv = [*ENTER, "ssh", "-p", "4001", "-i", os.fspath(tmp_path / "keys/ssh"), *words, f"root@{GATEWAY}", command]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done
