# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvc.errors import ConfigError, JobError, UsageError
from pvc.model.cluster import NodeShare
from pvc.model.host import Grants, GresPart, JobGres, PciDevice
from pvc.model.network import PciNetwork, ResourceSet
from pvc.plan import actions
from pvc.plan.node import NodePlan, plan_node
from pvc.plan.pci import Passthrough, divide_devices, take_devices
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


GIVEN = replace(GPU, gres="gpu")


def give(*indices: int, kind: str = "", total: int = 4) -> JobGres:
    return JobGres((GresPart("nic", "", (0,)), GresPart("gpu", kind, indices)), {"gpu": total, "nic": 1})


def take_given(
    count: int,
    gres: JobGres | None,
    devices: dict[str, PciDevice] | None = None,
    *,
    network: PciNetwork = GIVEN,
    taken: frozenset[str] = frozenset(),
) -> tuple[str, ...]:
    found = (DEVICES if devices is None else devices), gres
    return take_devices(taken, [Passthrough(network, (range(count),))], NodeShare("n1", 0, count), *found)["gpu"]


def test_exactly_what_slurm_gave_is_taken() -> None:
    assert take_given(1, give(2)) == (ADDRESSES[2],)
    assert take_given(2, give(3, 1)) == (ADDRESSES[1], ADDRESSES[3])
    # Two for each VM are as good as one; no VM gets more than another.
    assert take_given(1, give(1, 3)) == (ADDRESSES[1], ADDRESSES[3])
    assert list(divide_devices([4, 5], ADDRESSES)) == [(4, ADDRESSES[:2]), (5, ADDRESSES[2:])]
    assert list(divide_devices([4, 5], ())) == []


def test_devices_that_a_node_lacks_are_not_counted() -> None:
    network = replace(GIVEN, host_devices=("0000:01:00.0", *ADDRESSES))
    assert take_given(1, give(0), network=network) == (ADDRESSES[0],)


def test_a_type_has_the_indices_that_slurm_gave_of_it() -> None:
    both = JobGres((GresPart("gpu", "a100", (1,)), GresPart("gpu", "h100", (2, 3))), {"gpu": 4})
    assert take_given(1, both, network=replace(GIVEN, gres="gpu:a100")) == (ADDRESSES[1],)
    assert take_given(2, both, network=replace(GIVEN, gres="gpu:h100")) == (ADDRESSES[2], ADDRESSES[3])
    assert take_given(3, both) == ADDRESSES[1:]


def test_slurm_gave_other_numbers_than_the_vms_need() -> None:
    for count, gres, number in ((2, give(1), 1), (2, give(0, 1, 2), 3), (1, give(), 0), (1, give(0, kind="x"), 0)):
        network = replace(GIVEN, gres="gpu:a100") if gres.given[1].kind else GIVEN
        text = f"network gpu: {count} VMs on this node get as many devices each, and Slurm gave the job {number} "
        with pytest.raises(UsageError, match=text + f"{network.gres} here") as caught:
            take_given(count, gres, network=network)
        wish = f"{network.gres}:{count}"
        assert caught.value.hint == f"gres: {wish} in the template, or --gres={wish}, asks for one each"


def test_slurm_did_not_say_what_it_gave() -> None:
    with pytest.raises(JobError, match="network gpu: Slurm's controller did not tell which gpu the job has"):
        take_given(1, None)


@pytest.mark.parametrize(
    ("gres", "why"),
    [
        (give(0, total=3), "Slurm has 3 gpu on this node, and 4 of these devices are there"),
        (give(0, total=5), "Slurm has 5 gpu on this node, and 4 of these devices are there"),
        (give(4), "Slurm gave gpu number 4, and counts 4 on this node"),
        (JobGres((GresPart("gpu", "", None),), {"gpu": 4}), "Slurm only counts gpu: gres.conf needs a File="),
    ],
)
def test_what_the_site_and_slurm_say_contradicts(gres: JobGres, why: str) -> None:
    with pytest.raises(ConfigError, match=f"gpu.settings.host-device-addrs: {why}"):
        take_given(1, gres)


def test_a_dead_device_never_moves_the_others() -> None:
    rest = {address: device for address, device in DEVICES.items() if address != ADDRESSES[0]}
    with pytest.raises(ConfigError, match=f"Slurm has 4 gpu on .*3 of these devices are there, without {ADDRESSES[0]}"):
        take_given(1, give(2), rest)


def test_a_group_with_a_device_that_slurm_gave_to_others_is_not_given() -> None:
    for driver in ("nouveau", "vfio-pci", None):
        pair = {ADDRESSES[0]: PciDevice("nouveau", 10, ((ADDRESSES[1], driver),))}
        with pytest.raises(ConfigError, match=f"{ADDRESSES[0]} (shares|can be had)|shares IOMMU group 10"):
            take_given(1, give(0), {**DEVICES, **pair})
    pair = {
        ADDRESSES[0]: PciDevice("nouveau", 10, ((ADDRESSES[1], "nouveau"),)),
        ADDRESSES[1]: PciDevice("nouveau", 10, ((ADDRESSES[0], "nouveau"),)),
    }
    assert take_given(1, give(0, 1), {**DEVICES, **pair}) == ADDRESSES[:2]
    with pytest.raises(ConfigError, match=f"{ADDRESSES[1]} shares IOMMU group 10 with another VM's"):
        take_given(2, give(0, 1), {**DEVICES, **pair})


def test_a_device_that_another_cluster_still_has_is_not_given() -> None:
    with pytest.raises(UsageError, match=f"another cluster still has {ADDRESSES[1]}, which Slurm gave to this job"):
        take_given(1, give(1), taken=frozenset({ADDRESSES[1]}))
    with pytest.raises(ConfigError, match=f"{ADDRESSES[1]} is the VMs' already, by another network"):
        take_devices(
            frozenset(),
            [Passthrough(GIVEN, (range(1),)), Passthrough(replace(GIVEN, name="same"), (range(1),))],
            NodeShare("n1", 0, 1),
            DEVICES,
            give(1),
        )


def test_a_device_that_slurm_gave_and_that_cannot_be_had_is_told() -> None:
    with pytest.raises(ConfigError, match=f"2 devices are wanted on this node, and 1 can be had: {ADDRESSES[1]} is at"):
        take_given(2, give(0, 1), {**DEVICES, ADDRESSES[1]: PciDevice("nvidia", 11)})


@given(st.lists(st.integers(0, 3), unique=True, min_size=1), st.integers(1, 4))
def test_never_a_device_that_slurm_did_not_give(indices: list[int], count: int) -> None:
    try:
        found = take_given(count, give(*indices))
    except UsageError:
        assert len(indices) % count
        return
    assert sorted(found) == sorted(ADDRESSES[index] for index in indices)
    owners = list(divide_devices(range(count), found))
    assert [rank for rank, _ in owners] == list(range(count))
    assert tuple(address for _, addresses in owners for address in addresses) == found


def test_golden_two_devices_for_a_vm_from_slurm() -> None:
    site = replace(WORLD, devices={"gpu": GIVEN})
    job, request = replace(job_of(1, 2), gres=give(1, 3)), request_of(("gpu", 1), cpus=2)
    facts = replace(facts_of(job), devices=DEVICES)
    share = NodeShare("n1", 0, 1)
    granted = take_devices(frozenset(), [Passthrough(GIVEN, (range(1),))], share, DEVICES, job.gres)
    grants = Grants({"nat": 5001}, 0, (60000,), devices=granted)
    plan = plan_node(job, request, place(job.nodes, job.cpus, request), site, facts, grants)
    check_golden("node-pci-gres", plan)
    assert plan.grant.vms[0].devices == (ADDRESSES[1], ADDRESSES[3])
