# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from pvc.plan.numa import CpuPlace, Pinning, plan_pinning

# Two sockets of 4 cores with 2 threads each; siblings are n and n + 8, as Linux numbers them.
TOPOLOGY = tuple(CpuPlace(cpu % 8 // 4, cpu % 8 // 4, cpu % 4, cpu) for cpu in range(16))
NODE_OF = {place.cpu: place.numa_node for place in TOPOLOGY}


def pin(affinity: Sequence[int], vms: int, cpus: int) -> Pinning:
    return plan_pinning(affinity, TOPOLOGY, [cpus] * vms, len(set(affinity)))


@given(st.sets(st.integers(0, 15)), st.integers(1, 8), st.integers(1, 8), st.one_of(st.none(), st.integers(1, 16)))
def test_pins_are_disjoint_and_allowed(affinity: set[int], vms: int, cpus: int, allocated: int | None) -> None:
    found = plan_pinning(sorted(affinity), TOPOLOGY, [cpus] * vms, allocated)
    assert len(found.vms) == vms
    if found.reason is not None:
        assert all(pins == () for pins in found.vms)
        return
    used = [cpu for pins in found.vms for cpu in pins]
    assert all(len(pins) == cpus for pins in found.vms)
    assert len(used) == len(set(used))
    assert set(used) <= affinity


@given(st.sets(st.integers(0, 15), min_size=1), st.integers(1, 8), st.integers(1, 8))
def test_a_job_that_has_its_own_cpus_is_pinned(affinity: set[int], vms: int, cpus: int) -> None:
    assert (pin(sorted(affinity), vms, cpus).reason is None) == (len(affinity) >= vms * cpus)


@given(st.permutations(range(16)))
def test_order_of_the_affinity_does_not_matter(affinity: list[int]) -> None:
    assert pin(affinity, 3, 4) == pin(range(16), 3, 4)


def test_vms_stay_within_a_numa_node_where_they_fit() -> None:
    assert all(len({NODE_OF[cpu] for cpu in pins}) == 1 for pins in pin(range(16), 4, 3).vms)


def test_threads_of_a_core_go_to_one_vm() -> None:
    assert pin(range(16), 2, 2).vms == ((0, 8), (1, 9))


def test_where_slurm_counts_cores_each_vcpu_gets_one() -> None:
    assert plan_pinning([0, 1, 8, 9], TOPOLOGY, [1, 1], 2).vms == ((0,), (1,))


def test_a_vm_larger_than_a_numa_node_is_spread() -> None:
    assert len(pin(range(16), 1, 16).vms[0]) == 16


def test_folded_cores_are_not_pinned() -> None:
    found = plan_pinning([0, 1], TOPOLOGY, [2] * 3, 6)
    assert found.vms == ((), (), ())
    assert found.reason == "6 CPUs are allocated, 2 may be used: not the job's own"


def test_jobs_that_are_not_confined_are_not_pinned() -> None:
    assert "not the job's own" in (plan_pinning(range(16), TOPOLOGY, [2], 2).reason or "")


def test_fewer_cpus_than_cores() -> None:
    assert pin([0, 1], 3, 1).reason == "3 cores are needed, 2 CPUs are allocated"


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6))
def test_vms_of_different_sizes_get_as_many_as_each_has(cores: list[int]) -> None:
    found = plan_pinning(range(16), TOPOLOGY, cores, 16)
    if sum(cores) > 16:
        assert found.vms == ((),) * len(cores)
        return
    assert [len(pins) for pins in found.vms] == cores
    assert len({cpu for pins in found.vms for cpu in pins}) == sum(cores)


def test_unknown_facts_do_not_pin() -> None:
    assert "topology" in (plan_pinning([0, 99], TOPOLOGY, [2], 2).reason or "")
    assert "Slurm" in (plan_pinning([0, 1], TOPOLOGY, [2], None).reason or "")
