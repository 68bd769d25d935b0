# SPDX-License-Identifier: Apache-2.0
"""Networks whose numbers run out at run time, and ports that are their owner's alone."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import yaml

from tests.slurm.clusters import Cluster
from tests.slurm.testbed import Snapshot, Testbed
from tests.waits import wait_until

BOOT_S = 600.0
HOST_PORT = 59000
# Each has room for one cluster, but for the last: its ports are the owner's.
CHANGES: dict[str, dict[str, object]] = {
    "ports": {"ext-network": "10.220.0.0/24", "reverse-nat": {"min-host-port": 59100, "max-host-port": 59100}},
    "vnis": {"ext-network": "10.221.0.0/24", "vni-range": "70000-70000"},
    "slots": {"ext-network": "10.222.0.0/30"},
    "own": {
        "ext-network": "10.223.0.0/24",
        "reverse-nat": {"min-host-port": HOST_PORT, "max-host-port": HOST_PORT + 9, "access": "owner"},
    },
}
SAID = {
    "ports": "network ports: 1 host ports wanted, 0 of 59100-59100 are free on this node",
    "vnis": "no VNI is free in 70000-70000 for network vnis",
    "slots": "network slots: all 1 clusters that fit on a node are there",
}


@pytest.fixture
def site(tb: Testbed) -> Iterator[Testbed]:
    """The testbed with these networks and a resource set for each."""
    etc = tb.place.state_dir / "etc" / "pvc"
    files = {name: (etc / name).read_text() for name in ("networks.yaml", "resources.yaml")}
    networks, sets = (yaml.safe_load(text) for text in files.values())
    settings = {key: value for key, value in networks["nat"]["settings"].items() if key != "reverse-nat"}
    for index, (name, changes) in enumerate(CHANGES.items()):
        own = {"dev-prefix": name, "domain-name": f"{name}.test", "int-network": f"10.{210 + index}.0.0/16"}
        networks[name] = {"type": "ethernet", "settings": settings | own | changes}
        sets[name] = {"networks": [name]}
    sets["all"] = {"networks": list(SAID)}
    try:
        (etc / "networks.yaml").write_text(yaml.safe_dump(networks))
        (etc / "resources.yaml").write_text(yaml.safe_dump(sets))
        tb.reload()
        yield tb
        tb.wait_no_jobs()
    finally:
        for name, text in files.items():
            (etc / name).write_text(text)
        tb.reload()


def test_numbers_that_have_run_out(site: Testbed, small: str, before: dict[str, Snapshot]) -> None:
    """The second user is told which ones; neither job nor node suffers, and when the first has gone, there is room."""
    options = ("-w", "n1", "-c", "1", "-m", "128M", "--resource-set")
    first = Cluster(site, small, *options, "all")
    try:
        first.wait_running()
        for name, text in SAID.items():
            argv = ["pvc", "alloc", *options, name, small, "echo", "STARTED"]
            done = site.run(argv, user="teacher", check=False, timeout=300)
            assert (done.code != 0, "STARTED" in done.out) == (True, False), (name, done)
            assert text in done.err
            assert "hint:" in done.err
            queued = ["squeue", "-h", "-u", "teacher"]
            wait_until(lambda q=queued: not site.run(q, user="teacher").out, 120, "the job is still there")
            assert site.node_states()["n1"] not in ("drained", "draining", "down"), name
        assert site.run(["pvc", "status", "-j", str(first.job_id)]).code == 0
    finally:
        first.close()
    site.wait_no_jobs()
    for name in SAID:
        argv = ["pvc", "alloc", *options, name, small, "echo", "STARTED"]
        assert "STARTED" in site.run(argv, user="teacher", timeout=300).out
    site.wait_no_jobs()
    site.assert_clean(before)


def test_a_port_that_is_its_owners(site: Testbed, debian: str, before: dict[str, Snapshot]) -> None:
    """The owner's pvc ssh works from anywhere; nobody else gets to the guest's ssh, by pvc or by the port."""
    cluster = Cluster(site, debian, "-w", "n1", "-c", "1", "-m", "512M", "--resource-set", "own").wait_running()
    job = str(cluster.job_id)
    try:
        site.run(["pvc", "wait", "--timeout", f"{BOOT_S:g}s", "-j", job], timeout=BOOT_S + 60)
        for node in ("login", "n1"):
            said = site.run(["pvc", "ssh", "-j", job, "vm0", "--", "hostname; echo came from $SSH_CLIENT"], node=node)
            assert said.out.startswith("vm0\ncame from ")
        refused = site.run(["pvc", "ssh", "-j", job, "vm0", "--", "hostname"], user="teacher", check=False)
        assert refused.code != 0
        assert (refused.out, "hint:" in refused.err) == ("", True), refused
        (vm,) = json.loads(site.run(["pvc", "status", "--json", "-j", job]).out)["vms"]
        assert vm["ssh_port"] == HOST_PORT
        # The honest one first: the same question is answered for the owner, on the VM's own node.
        assert banner(site, "student", "n1") == "SSH-2.0-"
        for user, node in (("teacher", "n1"), ("root", "n1"), ("student", "n2"), ("teacher", "login")):
            assert banner(site, user, node) == "", (user, node)
    finally:
        cluster.close()
    site.wait_no_jobs()
    site.assert_clean(before)


def banner(tb: Testbed, user: str, node: str) -> str:
    """How whoever listens on the port of n1 introduces itself to a user of a node."""
    script = f"exec 3<>/dev/tcp/n1/{HOST_PORT} && head -c 8 <&3"
    return tb.run(["timeout", "15", "bash", "-c", script], user=user, node=node, check=False, timeout=300).out
