# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pvc.codec import dumps
from pvc.errors import ConfigError, UsageError
from pvc.model.host import Component, Grants
from pvc.model.network import EthernetNetwork, Layer
from pvc.model.node import ImageCache, Tap
from pvc.model.request import Size
from pvc.plan import actions, addresses, names
from pvc.plan.forwards import plan_wants
from pvc.plan.grants import PortWant
from pvc.plan.members import expand
from pvc.plan.node import Site, plan_memberships, plan_node
from pvc.plan.placement import place
from tests.unit.plan.golden import check_golden
from tests.unit.plan.worlds import NAT, SITE, facts_of, job_of, plan_of, request_of


def test_golden_four_vms_on_three_nodes() -> None:
    check_golden("node-nat-4-of-3", plan_of(job_of(3, 4), request_of(("nat", 4), cpus=2)))


def test_golden_two_networks_and_vms_without_any() -> None:
    request = request_of(("both", 2), ("none", 1), ("nat", 2), cpus=2)
    check_golden("node-both-none-nat", plan_of(job_of(2, 8, node=2), request))


def test_a_node_without_vms_makes_a_scratch_directory_and_nothing_else() -> None:
    plan = plan_of(job_of(3, 4, node=3), request_of(("nat", 2), cpus=2))
    assert [type(step) for step in plan.actions] == [actions.MakeRunDir]
    assert plan.grant.vms == ()


def test_vms_without_networks_need_no_namespace() -> None:
    plan = plan_of(job_of(1, 4), request_of(("none", 2)))
    assert [type(step) for step in plan.actions] == [actions.MakeRunDir]
    assert [vm.nics for vm in plan.grant.vms] == [(), ()]


def test_a_cache_of_images_is_its_users_alone() -> None:
    site = replace(SITE, image_cache=ImageCache("/var/cache/images", 5 << 30))
    request, made = request_of(("none", 1)), actions.MakeCacheDir("/var/cache/images/1000", 1000, 1000)
    for node, there in ((1, True), (2, False)):
        job = job_of(2, 4, node=node)
        plan = plan_node(job, request, place(job.nodes, job.cpus, request), site, facts_of(job), Grants({}, 0, ()))
        assert (made in plan.actions) == there
        assert plan.grant.image_cache == (ImageCache("/var/cache/images/1000", 5 << 30) if there else None)


def test_an_unknown_resource_set_is_the_users_mistake() -> None:
    with pytest.raises(UsageError, match="no resource set 'nope'") as error:
        plan_memberships(request_of(("nope", 1)), SITE)
    assert error.value.hint == "resource sets: both, nat, none"


def test_networks_with_the_same_addresses_are_not_in_one_cluster() -> None:
    site = _with(replace(NAT, name="back"))
    with pytest.raises(UsageError, match="networks nat and back have overlapping addresses"):
        plan_memberships(request_of(("both", 1)), site)


def test_a_network_too_small_for_the_cluster_is_refused() -> None:
    small = replace(NAT, int_network=IPv4Network("10.200.0.0/29"))
    site = replace(SITE, networks={**SITE.networks, "nat": small})
    job, request = job_of(1, 8), request_of(("nat", 6))
    with pytest.raises(UsageError, match=r"has addresses for 5 VMs, not for vm5"):
        plan_node(job, request, place(job.nodes, job.cpus, request), site, facts_of(job), _grants(6))


def test_an_mtu_that_the_underlay_does_not_carry_is_the_administrators_mistake() -> None:
    job, request = job_of(1, 8), request_of(("nat", 1))
    facts = replace(facts_of(job), device_mtu=1500)
    with pytest.raises(ConfigError, match=r"nat\.settings\.mtu: 1550 is more than eth0 carries \(1500\)"):
        plan_node(job, request, place(job.nodes, job.cpus, request), SITE, facts, _grants(1))


def test_an_l2_network_gets_no_services() -> None:
    site = _with(replace(NAT, layer=Layer.L2))
    job, request = job_of(2, 4), request_of(("nat", 4), cpus=2)
    plan = plan_node(job, request, place(job.nodes, job.cpus, request), site, facts_of(job), _grants(0))
    kinds = {type(step) for step in plan.actions}
    assert kinds == {
        actions.MakeRunDir,
        actions.AddNetns,
        actions.AddBridge,
        actions.AddVxlan,
        actions.AddTaps,
        actions.AddPeers,
        actions.LoadRules,  # of the node: who may send with the VNI
    }
    assert all(nic.address is None for vm in plan.grant.vms for nic in vm.nics)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.data())
def test_all_nodes_agree_and_no_two_vms_share_an_address(nodes: int, cpus: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, nodes * cpus))
    request = request_of(("nat", count), cpus=1)
    macs: dict[str, int] = {}
    ips: dict[str, int] = {}
    for number in range(1, nodes + 1):
        plan = plan_of(job_of(nodes, cpus, node=number), request)
        local = {nic.mac for vm in plan.grant.vms for nic in vm.nics}
        for vm in plan.grant.vms:
            for nic in vm.nics:
                assert macs.setdefault(nic.mac, vm.rank) == vm.rank
                assert ips.setdefault(nic.address or "", vm.rank) == vm.rank
                assert plan.taps[nic.tap_index] == Tap(names.tap(vm.rank, 0), plan.netns)
        peers = [step for step in plan.actions if isinstance(step, actions.AddPeers)]
        programs = [step for step in plan.actions if isinstance(step, actions.AddPrograms)]
        if plan.grant.vms:
            assert {port.mac for port in programs[0].ports} == local
            # A label is the place of a node in both.
            assert programs[0].elsewhere == tuple(peer.ranks for peer in peers[0].peers)
            ranks = [each for ranks in programs[0].elsewhere for each in expand(programs[0].numbering, ranks)]
            remote = {mac for _, mac, *_ in ranks}
            assert not remote & local
            assert len(remote) + len(local) == count
            assert all(mac == addresses.vm_mac(NAT, 0, rank) for rank, mac, *_ in ranks)
            assert all(address == addresses.vm_address(NAT, rank) for rank, _, address, _ in ranks)
            assert plan.grant.node_address not in [peer.node for peer in peers[0].peers]
    assert len(macs) == len(ips) == count


@given(st.integers(0, 65535), st.integers(0, 3))
def test_macs_are_unicast_and_never_the_gateways(rank: int, index: int) -> None:
    mac = addresses.vm_mac(NAT, index, rank)
    assert len(mac) == 17
    assert mac != addresses.gateway_mac(NAT, index)


@given(st.integers(20, 30), st.integers(0, 5000))
def test_vm_addresses_stay_clear_of_network_gateway_and_broadcast(length: int, rank: int) -> None:
    network = replace(NAT, int_network=IPv4Network(f"10.8.0.0/{length}"))
    try:
        address = IPv4Address(addresses.vm_address(network, rank))
    except UsageError:
        assert rank >= addresses.capacity(network.int_network)
        return
    assert address in network.int_network
    assert address not in (network.int_network.network_address, network.int_network.broadcast_address)
    assert str(address) != addresses.gateway_address(network)


def test_device_names_fit_the_kernel_for_any_job() -> None:
    for prefix in ("n", "nat", "pvcnets", "pvcnet12"):
        for job_id in (1, 12, 99999999, 0x03FFFFFF, 0xFFFFFFFF):
            assert len(names.uplink(prefix, job_id)) <= names.MAX_DEVICE
    assert names.uplink("nat", 12) == "nat12"
    assert len({names.uplink("pvcnet12", job) for job in range(99_999_000, 100_001_000)}) == 2000
    assert len(names.tap(65535, 99)) <= names.MAX_DEVICE


def test_ten_thousand_vms_are_planned_by_each_node_alone() -> None:
    plan = plan_of(job_of(1000, 10, node=500), request_of(("nat", 10000), cpus=1))
    peers = next(step for step in plan.actions if isinstance(step, actions.AddPeers))
    assert len(peers.peers) == 999
    assert sum(end - first for peer in peers.peers for first, end in peer.ranks) == 9990
    # What is said of other nodes is said of ranges: a plan does not grow with their VMs.
    more = plan_of(
        replace(job_of(1000, 60, node=500), cpus=(60,) * 499 + (10,) + (60,) * 500), request_of(("nat", 59950), cpus=1)
    )
    assert len(dumps(more)) < 1.1 * len(dumps(plan))
    assert len(plan.grant.vms) == 10


def test_nodes_of_all_components_plan_one_network() -> None:
    """Each has the VMs of its component's size, and entries for those of all others."""
    request = replace(request_of(("nat", 6)), sizes=(Size(2, 1), Size(4, 8)))
    components = (Component(12, 1), Component(13, 2))
    jobs = [
        replace(job_of(3, 16, node=node), job_id=12 if node == 1 else 13, het_job_id=12, components=components)
        for node in (1, 2, 3)
    ]
    assert {job.cluster_id for job in jobs} == {12}
    plans = [plan_of(job, request) for job in jobs]
    ranks = [[vm.rank for vm in plan.grant.vms] for plan in plans]
    assert ranks == [[0, 1], [2, 3], [4, 5]]
    assert [plan.netns for plan in plans] == ["pvc-12", "pvc-13", "pvc-13"]
    tunnels = {step.vni for plan in plans for step in plan.actions if isinstance(step, actions.AddVxlan)}
    assert tunnels == {5001}
    for plan, own in zip(plans, ranks, strict=True):
        (peers,) = [step for step in plan.actions if isinstance(step, actions.AddPeers)]
        known = {rank for peer in peers.peers for first, end in peer.ranks for rank in range(first, end)}
        assert known == set(range(6)) - set(own)
    addresses_of = [vm.nics[0].address for plan in plans for vm in plan.grant.vms]
    assert addresses_of == [f"{addresses.vm_address(NAT, rank)}/16" for rank in range(6)]


def test_ports_are_counted_for_the_nodes_own_vms_only() -> None:
    job, request = job_of(2, 8), request_of(("nat", 6), cpus=2)
    first, second = place(job.nodes, job.cpus, request).shares
    memberships = plan_memberships(request, SITE)
    assert plan_wants(memberships, first) == (PortWant("nat", 3, 60000, 60999),)
    assert plan_wants(memberships, second) == (PortWant("nat", 3, 60000, 60999),)
    assert plan_wants(plan_memberships(request_of(("none", 2)), SITE), first) == ()


def _grants(ports: int) -> Grants:
    return Grants({"nat": 5001, "back": 5002}, 0, tuple(range(60000, 60000 + ports)))


def _with(network: EthernetNetwork) -> Site:
    return replace(SITE, networks={**SITE.networks, network.name: network})
