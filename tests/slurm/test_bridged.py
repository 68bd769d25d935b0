# SPDX-License-Identifier: Apache-2.0
"""VMs on a bridge of the site's: addresses, neighbours and the way are the site's."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.slurm.clusters import Cluster
from tests.slurm.guest import Console
from tests.slurm.labs import wait_ready
from tests.slurm.testbed import Snapshot, Testbed

NETWORK = "\nsite:\n  type: bridged\n  settings: {host-bridge: sitebr, tap-prefix: sitetap}\n"
BRIDGE = (
    "ip link add sitebr type bridge && ip link add site0 type veth peer name site1 && "
    "ip link set site0 master sitebr && ip link set site0 up && ip link set site1 up && ip link set sitebr up && "
    "ip addr add 192.0.2.1/24 dev sitebr && "
    "dnsmasq --conf-file=/dev/null --interface=sitebr --bind-interfaces --port=0 --no-ping --dhcp-authoritative "
    "--dhcp-leasefile=/dev/null "
    "--dhcp-range=192.0.2.10,192.0.2.99 --pid-file=/run/site-dnsmasq.pid"
)
# A busy machine may have been too slow for the guest's own patience.
ADDRESS = "ip -4 addr show eth0 | grep -q 192.0.2 || udhcpc -q -n -t 40 -T 1 -i eth0 -s /dhcp; ip -4 addr show eth0"


@pytest.fixture
def site(tb: Testbed) -> Iterator[Testbed]:
    """A testbed whose first node has a bridge with a DHCP server of the site's."""
    etc = tb.place.state_dir / "etc" / "pvc"
    kept = {path: path.read_text() for path in (etc / "networks.yaml", etc / "resources.yaml")}
    (etc / "networks.yaml").write_text(kept[etc / "networks.yaml"] + NETWORK)
    (etc / "resources.yaml").write_text(kept[etc / "resources.yaml"] + "\nsite:\n  networks: [site]\n")
    tb.reload()
    tb.root(BRIDGE, "n1")
    try:
        yield tb
    finally:
        tb.root(
            "kill $(cat /run/site-dnsmasq.pid); rm /run/site-dnsmasq.pid; ip link del sitebr; ip link del site0", "n1"
        )
        for path, text in kept.items():
            path.write_text(text)
        tb.reload()


def test_vms_are_neighbours_of_the_site(site: Testbed, small: str) -> None:
    before: dict[str, Snapshot] = {"n1": site.snapshot("n1")}
    cluster = Cluster(site, f"{small}:2", "-w", "n1", "--resource-set", "site")
    try:
        cluster.wait_running()
        wait_ready(site, cluster, 2)
        with Console(site, cluster.job_id, "vm0") as vm, Console(site, cluster.job_id, "vm1") as other:
            code, out = vm.run(ADDRESS, 60)
            assert "inet 192.0.2." in out, out
            assert vm.run("ping -c 1 -w 10 192.0.2.1")[0] == 0
            code, out = other.run(ADDRESS, 60)
            address = out.partition("inet ")[2].partition("/")[0]
            code, out = vm.run(f"ping -c 1 -w 10 {address}")
            assert code == 0, out
        shown = json.loads(site.run(["pvc", "network", "show", "site", "--json"]).out)
        (live,) = shown["clusters"]
        # What a prefix of seven letters is short for.
        assert site.root("ip -o link show master sitebr", "n1").count(": sitp.") == 2
        assert live["data_path"] == "bridge sitebr"
        assert all(each["interface"]["mac"].startswith("02:") for each in live["members"])
        assert all(each["interface"]["counters"]["tx_packets"] for each in live["members"])
        assert site.run(["pvc", "doctor", "-j", str(cluster.job_id)]).code == 0
    finally:
        cluster.close()
    site.wait_no_jobs()
    site.assert_clean(before)


def test_a_node_without_the_bridge_is_told_and_stays(site: Testbed, small: str) -> None:
    done = site.run(["pvc", "alloc", "-w", "n2", "--resource-set", "site", small, "true"], check=False, timeout=300)
    assert done.code != 0
    assert "site.settings.host-bridge: this node has no bridge sitebr" in done.err
    site.wait_idle()
