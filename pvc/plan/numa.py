# SPDX-License-Identifier: Apache-2.0
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


def plan_pinning(
    affinity: Sequence[int], topology: Sequence[CpuPlace], cores: Sequence[int], allocated: int | None
) -> Pinning:
    """Distinct CPUs of ``affinity`` for VMs with as many ``cores`` each as listed.

    ``allocated`` is the number of CPUs that Slurm gave the job on this node. Nothing is pinned unless that is what
    the job may use: more means that Slurm does not confine jobs here, and another job would pin to the same CPUs;
    fewer means that Slurm was configured with more cores than there are, which it folds onto the real ones.

    A VM that fits into what is left of one NUMA node gets all its CPUs there: nodes are tried in order, the first with
    room wins; a VM that fits nowhere takes what is left in order.
    """
    vms, wanted = len(cores), sum(cores)
    known = {place.cpu: place for place in topology}
    if not set(affinity) <= known.keys():
        return _unpinned(vms, "the topology of the allocated CPUs is not known")
    if allocated is None:
        return _unpinned(vms, "Slurm does not say how many CPUs are allocated")
    places = sorted(known[cpu] for cpu in set(affinity))
    if len(places) != allocated:
        # A site that counts cores in Slurm gives both threads of each.
        by_core = {(place.numa_node, place.package, place.core): place for place in reversed(places)}
        if len(by_core) != allocated:
            return _unpinned(vms, f"{allocated} CPUs are allocated, {len(places)} may be used: not the job's own")
        places = sorted(by_core.values())
    if len(places) < wanted:
        return _unpinned(vms, f"{wanted} cores are needed, {len(places)} CPUs are allocated")
    free: dict[int, list[int]] = {}
    for place in places:
        free.setdefault(place.numa_node, []).append(place.cpu)
    return Pinning(tuple(_take(free, count) for count in cores))


def _unpinned(vms: int, reason: str) -> Pinning:
    return Pinning(((),) * vms, reason)


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
