from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvc.errors import ConfigError, UsageError
from pvc.model.cluster import NodeShare
from pvc.model.host import Grants, PciDevice
from pvc.model.network import PciNetwork, ResourceSet
from pvc.plan import actions
from pvc.plan.node import NodePlan, plan_node
from pvc.plan.pci import Passthrough, take_devices
from pvc.plan.placement import place
from tests.unit.plan.golden import check_golden
from tests.unit.plan.worlds import SITE, facts_of, job_of, request_of

ADDRESSES = tuple(f"0000:3b:00.{number}" for number in range(4))
GPU = PciNetwork("gpu", ADDRESSES, "nouveau")
DEVICES = {address: PciDevice("nouveau", 10 + number) for number, address in enumerate(ADDRESSES)}
WORLD = replace(
    SITE, devices={"gpu": GPU}, resource_sets={**SITE.resource_sets, "gpu": ResourceSet("gpu", ("nat", "gpu"))}
)


def share_of(count: int) -> tuple[tuple[Passthrough, ...], NodeShare]:
    return (Passthrough(GPU, (range(count),)),), NodeShare("n1", 0, count)


def take(count: int, devices: dict[str, PciDevice], taken: frozenset[str] = frozenset()) -> tuple[str, ...]:
    passthroughs, share = share_of(count)
    return take_devices(taken, passthroughs, share, devices)["gpu"]


def plan_of(devices: dict[str, PciDevice], granted: tuple[str, ...]) -> NodePlan:
    job, request = job_of(1, 4), request_of(("gpu", 2), cpus=2)
    facts = replace(facts_of(job), devices=devices)
    grants = Grants({"nat": 5001}, 0, (60000, 60001), devices={"gpu": granted})
    return plan_node(job, request, place(job.nodes, job.cpus, request), WORLD, facts, grants)


def bindings(plan: NodePlan) -> list[tuple[str, int, str]]:
    return [(each.address, each.group, each.driver) for each in plan.actions if isinstance(each, actions.BindDevice)]


def test_golden_a_device_for_each_vm_beside_its_network() -> None:
    check_golden("node-pci", plan_of(DEVICES, ADDRESSES[:2]))


def test_devices_go_back_to_the_driver_that_they_had_or_should_have() -> None:
    devices = {**DEVICES, ADDRESSES[0]: PciDevice(None, 10), ADDRESSES[1]: PciDevice("vfio-pci", 11)}
    assert {driver for _, _, driver in bindings(plan_of(devices, ADDRESSES[:2]))} == {"nouveau"}


def test_the_rest_of_a_group_is_bound_with_its_device() -> None:
    pair = {
        ADDRESSES[0]: PciDevice("nouveau", 10, ((ADDRESSES[1], "nouveau"), ("0000:3a:00.0", "pcieport"))),
        ADDRESSES[1]: PciDevice("nouveau", 10, ((ADDRESSES[0], "nouveau"), ("0000:3a:00.0", "pcieport"))),
    }
    assert take(1, pair) == ADDRESSES[:1]
    with pytest.raises(ConfigError, match="2 devices are wanted on this node, and 1 can be had"):
        take(2, pair)
    both = plan_of({**DEVICES, **pair}, (ADDRESSES[0], ADDRESSES[2]))
    assert bindings(both) == [
        (ADDRESSES[0], 10, "nouveau"),
        (ADDRESSES[1], 10, "nouveau"),
        (ADDRESSES[2], 12, "nouveau"),
    ]
    assert [vm.devices for vm in both.grant.vms] == [(ADDRESSES[0],), (ADDRESSES[2],)]


@pytest.mark.parametrize(
    ("device", "why"),
    [
        (None, "0000:3b:00.0 is not there"),
        (PciDevice("nouveau", None), "0000:3b:00.0 has no IOMMU group: is the IOMMU on"),
        (PciDevice("nvidia", 10), "0000:3b:00.0 is at driver nvidia, not at nouveau"),
        (
            PciDevice("nouveau", 10, (("0000:3b:00.7", "snd_hda_intel"),)),
            "0000:3b:00.0 shares IOMMU group 10 with 0000:3b:00.7, which is at driver snd_hda_intel",
        ),
    ],
)
def test_why_a_device_cannot_be_had(device: PciDevice | None, why: str) -> None:
    devices = {key: each for key, each in {**DEVICES, ADDRESSES[0]: device}.items() if each is not None}
    assert take(3, devices) == ADDRESSES[1:]
    with pytest.raises(ConfigError) as caught:
        take(4, devices)
    assert "gpu.settings.host-device-addrs: 4 devices are wanted on this node, and 3 can be had" in str(caught.value)
    assert why in str(caught.value)


def test_devices_of_other_jobs_and_their_groups_are_not_free() -> None:
    assert take(2, DEVICES, frozenset(ADDRESSES[:2])) == ADDRESSES[2:]
    with pytest.raises(UsageError, match="3 devices wanted, 2 of 4 are free on this node") as caught:
        take(3, DEVICES, frozenset(ADDRESSES[:2]))
    assert caught.value.hint == "wait for other clusters to end"
    grouped = {**DEVICES, ADDRESSES[1]: PciDevice(None, 10, ((ADDRESSES[0], "vfio-pci"),))}
    assert take(2, grouped, frozenset(ADDRESSES[:1])) == ADDRESSES[2:]


@given(st.lists(st.integers(1, 3), max_size=6))
def test_no_device_and_no_group_is_handed_out_twice(counts: list[int]) -> None:
    taken: set[str] = set()
    for count in counts:
        try:
            found = take(count, DEVICES, frozenset(taken))
        except UsageError:
            assert len(ADDRESSES) - len(taken) < count
            continue
        assert not taken & set(found)
        taken |= set(found)
