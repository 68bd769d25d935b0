"""Which host CPUs the cores of each VM are pinned to: packed by NUMA node and core, never shared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class CpuPlace:
    """A host CPU and where it sits; ordering packs by NUMA node, then socket, then core."""

    numa_node: int
    package: int
    core: int
    cpu: int


@dataclass(frozen=True)
class Pinning:
    """Host CPUs of each vCPU, VM by VM; empty tuples and a reason when VMs are left to the scheduler."""

    vms: tuple[tuple[int, ...], ...]
    reason: str | None = None


def plan_pinning(affinity: Sequence[int], topology: Sequence[CpuPlace], vms: int, cpus_per_vm: int) -> Pinning:
    """Distinct CPUs of ``affinity`` for ``vms`` VMs of ``cpus_per_vm`` cores each.

    A VM that fits into what is left of one NUMA node gets all its CPUs there: nodes are tried in order, the first with
    room wins; a VM that fits nowhere takes what is left in order. Fewer CPUs than cores (Slurm configured
    with more CPUs than there are, or cores folded by an administrator) pin nothing.
    """
    allowed = set(affinity)
    wanted = vms * cpus_per_vm
    if len(allowed) < wanted:
        return Pinning(((),) * vms, f"{wanted} cores are allocated but only {len(allowed)} CPUs may be used")
    known = {place.cpu: place for place in topology}
    if not allowed <= known.keys():
        return Pinning(((),) * vms, "the topology of the allocated CPUs is not known")
    free: dict[int, list[int]] = {}
    for place in sorted(known[cpu] for cpu in allowed):
        free.setdefault(place.numa_node, []).append(place.cpu)
    pins: list[tuple[int, ...]] = []
    for _ in range(vms):
        pins.append(_take(free, cpus_per_vm))
    return Pinning(tuple(pins))


def _take(free: dict[int, list[int]], count: int) -> tuple[int, ...]:
    for cpus in free.values():
        if len(cpus) >= count:
            taken, cpus[:] = cpus[:count], cpus[count:]
            return tuple(taken)
    spread: list[int] = []
    for cpus in free.values():
        part = cpus[: count - len(spread)]
        cpus[:] = cpus[len(part) :]
        spread += part
    return tuple(spread)
