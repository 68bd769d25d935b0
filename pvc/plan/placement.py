"""Which node runs which ranks: a pure function of what Slurm allocated and what was asked for."""

from __future__ import annotations

from collections.abc import Sequence

from pvc.errors import UsageError
from pvc.model.cluster import NodeShare, Placement
from pvc.model.request import Request


def place(nodes: Sequence[str], cpus: Sequence[int], request: Request) -> Placement:
    """Ranks of each node: one VM a node first, as Slurm gives every node a task, then filled in order.

    ``nodes`` and ``cpus`` are SLURM_NODELIST and SLURM_JOB_CPUS_PER_NODE, expanded, in Slurm's order. A
    request without ``cpus`` gets the most cores for each VM that still let all of them fit.

    :raise UsageError: the VMs do not fit in the allocation.
    """
    if len(nodes) != len(cpus) or not nodes:
        raise UsageError(f"{len(nodes)} nodes with {len(cpus)} core counts are no allocation")
    each = request.cpus or _most_cpus(cpus, request.count)
    room = [count // each for count in cpus] if each else [0] * len(cpus)
    if sum(room) < request.count:
        wanted = f"{request.cpus} cores" if request.cpus else "1 core"
        raise UsageError(
            f"{request.count} VMs of {wanted} do not fit in the allocation of {sum(cpus)} cores on {len(nodes)} nodes",
            hint="allocate a task for each VM: -n VMS -c CORES",
        )
    counts = _spread(room, request.count)
    shares: list[NodeShare] = []
    first = 0
    for node, count in zip(nodes, counts, strict=True):
        shares.append(NodeShare(node, first, count))
        first += count
    return Placement(each, tuple(shares))


def _spread(room: Sequence[int], count: int) -> list[int]:
    counts = [0] * len(room)
    left = count
    for index, limit in enumerate(room):
        if left and limit:
            counts[index] = 1
            left -= 1
    for index, limit in enumerate(room):
        more = min(left, limit - counts[index])
        if more > 0:
            counts[index] += more
            left -= more
    return counts


def _most_cpus(cpus: Sequence[int], count: int) -> int:
    low, high = 0, max(cpus)
    while low < high:
        middle = (low + high + 1) // 2
        if sum(cores // middle for cores in cpus) >= count:
            low = middle
        else:
            high = middle - 1
    return low
