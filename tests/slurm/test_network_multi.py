# SPDX-License-Identifier: Apache-2.0
"""VMs on one to three networks in one cluster, on each data path."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import yaml

from pvc.plan import addresses
from tests.slurm.clusters import Cluster
from tests.slurm.labs import Lab, is_answered, wait_ready
from tests.slurm.testbed import Testbed

# Of each data path: the networks of the VMs, the last of which is an empty switch.
PATHS = {"kernel": ("nat", "back", "lan"), "ovs": ("nat-ovs", "back-ovs", "lan-ovs")}
BACK = "10.210.0.0/20"
TEMPLATES = """
one: {image: small, resource-set: one}
two: {image: small, resource-set: two}
three: {image: small, resource-set: three}
"""
ON_EACH = {0: 1, 1: 3, 2: 3, 3: 2}


@pytest.fixture(scope="module", params=list(PATHS))
def lab(request: pytest.FixtureRequest, testbed: Testbed, small: str) -> Iterator[Lab]:
    """vm0 has one network, vm1 and vm2 have three, vm3 has two; vm0 and vm1 are on n1."""
    names = PATHS[request.param]
    site = testbed.place.state_dir / "etc" / "pvc"
    files = {name: (site / name).read_text() for name in ("networks.yaml", "resources.yaml")}
    networks, sets = (yaml.safe_load(text) for text in files.values())
    settings = networks[names[0]]["settings"]
    del settings["reverse-nat"]
    more = {"dev-prefix": "back", "int-network": BACK, "domain-name": "back.test", "allow-outbound": "none"}
    networks[names[1]] = {"type": "ethernet", "settings": settings | more}
    sets |= {word: {"networks": list(names[:count])} for count, word in enumerate(("one", "two", "three"), 1)}
    templates = testbed.home() / ".pvc" / "templates.yaml"
    try:
        (site / "networks.yaml").write_text(yaml.safe_dump(networks))
        (site / "resources.yaml").write_text(yaml.safe_dump(sets))
        testbed.run(["mkdir", "-p", ".pvc"])
        templates.write_text(TEMPLATES.replace("small", small))
        testbed.reload()
        yield from _run(testbed, names[0])
    finally:
        templates.unlink(missing_ok=True)
        for name, text in files.items():
            (site / name).write_text(text)
        testbed.reload()


def _run(tb: Testbed, name: str) -> Iterator[Lab]:
    tb.wait_no_jobs()
    before = {node: tb.snapshot(node) for node in tb.nodes()}
    cluster = Cluster(tb, "one:1,three:2,two:1", "-N", "3", "-c", "1", "-m", "128M")
    try:
        lab = Lab(tb, name, cluster.wait_running(), cluster)
        wait_ready(tb, cluster, len(ON_EACH))
        yield lab
        lab.close()
    finally:
        cluster.close()
    tb.wait_no_jobs()
    tb.assert_clean(before)


def test_interfaces(lab: Lab) -> None:
    first, gateway = lab.network, addresses.gateway_address(lab.network)
    for rank, count in ON_EACH.items():
        shown = lab.ask(rank, "ip -o -4 addr show scope global; ip -o link")
        for index in range(count):
            assert addresses.vm_mac(first, index, rank) in shown
        assert f"eth{count}" not in shown
        assert (f"10.200.0.{rank + 1}/16" in shown, f"10.210.0.{rank + 1}/20" in shown) == (True, count > 1)
        # The way out is that of the first network.
        routes = lab.ask(rank, "ip route").splitlines()
        assert f"via {gateway} dev eth0" in next(line for line in routes if line.startswith("default"))


def test_names_on_each_network(lab: Lab) -> None:
    gateway = addresses.gateway_address(lab.network)
    for asker in ON_EACH:
        for rank, count in ON_EACH.items():
            assert f"10.200.0.{rank + 1}" in lab.ask(asker, f"nslookup vm{rank}.{lab.network.domain_name} {gateway}")
            code, said = lab.vm(asker).run(f"nslookup vm{rank}.back.test {gateway}")
            assert (code == 0 and f"10.210.0.{rank + 1}" in said) == (count > 1), said


def test_networks_are_apart(lab: Lab) -> None:
    for source, to in ((1, 2), (2, 3), (3, 1)):
        for network in ("200", "210"):
            lab.ask(source, f"frames ping 10.{network}.0.{to + 1} 1500")
    for to in (1, 2):
        lab.ask(0, f"frames ping 10.200.0.{to + 1} 1500")
        # vm0 is not on the second network, and its gateway does not take it there.
        assert not is_answered(lab, 0, f"10.210.0.{to + 1}")


def test_addresses_of_ones_own_on_the_third(lab: Lab) -> None:
    for rank in (1, 2):
        lab.ask(rank, f"ip addr add 192.168.9.{rank}/24 dev eth2")
    lab.ask(1, "frames ping 192.168.9.2 1500")
    lab.ask(3, "ip addr add 192.168.9.3/24 dev eth1")
    assert not is_answered(lab, 3, "192.168.9.1")
