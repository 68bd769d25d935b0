from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pvc.plan.numa import CpuPlace, plan_pinning

# Two sockets of 4 cores with 2 threads each; siblings are n and n + 8, as Linux numbers them.
TOPOLOGY = tuple(CpuPlace(cpu % 8 // 4, cpu % 8 // 4, cpu % 4, cpu) for cpu in range(16))
NODE_OF = {place.cpu: place.numa_node for place in TOPOLOGY}


@given(st.sets(st.integers(0, 15)), st.integers(1, 8), st.integers(1, 8))
def test_pins_are_disjoint_and_allowed(affinity: set[int], vms: int, cpus: int) -> None:
    found = plan_pinning(sorted(affinity), TOPOLOGY, vms, cpus)
    assert len(found.vms) == vms
    if len(affinity) < vms * cpus:
        assert found.reason is not None
        assert all(pins == () for pins in found.vms)
        return
    assert found.reason is None
    used = [cpu for pins in found.vms for cpu in pins]
    assert all(len(pins) == cpus for pins in found.vms)
    assert len(used) == len(set(used))
    assert set(used) <= affinity


@given(st.permutations(range(16)))
def test_order_of_the_affinity_does_not_matter(affinity: list[int]) -> None:
    assert plan_pinning(affinity, TOPOLOGY, 3, 4) == plan_pinning(range(16), TOPOLOGY, 3, 4)


def test_vms_stay_within_a_numa_node_where_they_fit() -> None:
    found = plan_pinning(range(16), TOPOLOGY, 4, 3)
    assert all(len({NODE_OF[cpu] for cpu in pins}) == 1 for pins in found.vms)


def test_threads_of_a_core_go_to_one_vm() -> None:
    assert plan_pinning(range(16), TOPOLOGY, 2, 2).vms == ((0, 8), (1, 9))


def test_a_vm_larger_than_a_numa_node_is_spread() -> None:
    assert len(plan_pinning(range(16), TOPOLOGY, 1, 16).vms[0]) == 16


def test_folded_cores_are_not_pinned() -> None:
    found = plan_pinning([0, 1], TOPOLOGY, 3, 2)
    assert found.vms == ((), (), ())
    assert found.reason == "6 cores are allocated but only 2 CPUs may be used"


def test_unknown_cpus_are_not_pinned() -> None:
    found = plan_pinning([0, 99], TOPOLOGY, 1, 2)
    assert found.vms == ((),)
    assert "topology" in (found.reason or "")
