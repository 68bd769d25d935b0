# SPDX-License-Identifier: Apache-2.0
"""Which node runs which ranks: a pure function of what Slurm allocated and what was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from pvc.errors import UsageError
from pvc.model.cluster import NodeShare, Placement
from pvc.model.request import Request, Size


def place(nodes: Sequence[str], cpus: Sequence[int], request: Request, parts: Sequence[int] = ()) -> Placement:
    """Ranks of each node: as many VMs as Slurm would give it tasks (SLURM_TASKS_PER_NODE).

    ``nodes`` and ``cpus`` are SLURM_NODELIST and SLURM_JOB_CPUS_PER_NODE, expanded, in Slurm's order. A
    request without ``cpus`` gets the most cores for each VM that still let all of them fit there. Of a heterogeneous
    job they are those of its components, one after the other, with ``parts`` nodes each: every component runs
    the VMs of one size. VMs of different sizes in an ordinary job fill its nodes by rank.

    :raise UsageError: the VMs do not fit in the allocation, or the sizes not to the components.
    """
    if len(nodes) != len(cpus) or not nodes or (parts and sum(parts) != len(nodes)):
        raise UsageError(f"{len(nodes)} nodes with {len(cpus)} core counts are no allocation")
    sizes = _agree(request, len(parts) or 1)
    if len(sizes) > 1 and len(parts) <= 1:
        return Placement(sizes, _fill(nodes, cpus, sizes))
    _check_nodes(nodes)
    known: list[Size] = []
    shares: list[NodeShare] = []
    begin = first = 0
    for component, (size, length) in enumerate(zip(sizes, parts or (len(nodes),), strict=True)):
        end = begin + length
        each, counts = _place_size(cpus[begin:end], size, request)
        known.append(Size(size.count, each))
        for node, count in zip(nodes[begin:end], counts, strict=True):
            shares.append(NodeShare(node, first, count, component))
            first += count
        begin = end
    return Placement(tuple(known), tuple(shares))


def _agree(request: Request, components: int) -> tuple[Size, ...]:
    """The sizes that fit to this many components.

    :raise UsageError: none do.
    """
    sizes = request.list_sizes()
    if components == len(sizes):
        return sizes
    if components == 1:
        # By hand (salloc --pvc=...) an ordinary job says how large all VMs are, as its tasks are.
        known = tuple(Size(size.count, size.cpus or 1) for size in sizes)
        return (Size(request.count),) if all(size.cpus is None for size in sizes) else known
    raise UsageError(
        f"the VMs are of {len(sizes)} {'sizes' if len(sizes) > 1 else 'size'}, but the job has {components} components",
        hint="let pvc alloc or pvc batch make the job: one component for each size of VMs in the definition's order",
    )


def _check_nodes(nodes: Sequence[str]) -> None:
    if len(set(nodes)) < len(nodes):
        double = next(node for node in nodes if nodes.count(node) > 1)
        raise UsageError(f"node {double} is in two components of the job: each needs nodes of its own")


def _place_size(cpus: Sequence[int], size: Size, request: Request) -> tuple[int, list[int]]:
    """(cores of a VM, VMs on each node).

    :raise UsageError: they do not fit.
    """
    deal = _pack if request.pack else _deal
    if request.whole and size.cpus is None and size.count <= sum(cpus):
        # Slurm counts tasks of one core each, whatever it gives; VMs have what is there for as many.
        counts = deal(cpus, size.count)
        return min(cores // number for cores, number in zip(cpus, counts, strict=True) if number), counts
    each = size.cpus or _most_cpus(cpus, size.count)
    room = [count // each for count in cpus] if each else [0] * len(cpus)
    if sum(room) < size.count:
        wanted = f"{size.cpus} cores" if size.cpus else "1 core"
        raise UsageError(
            f"{size.count} VMs of {wanted} do not fit in the allocation of {sum(cpus)} cores on {len(cpus)} nodes",
            hint="allocate a task for each VM: -n VMS -c CORES",
        )
    shared = None if request.whole else _share(cpus, size.count, each)
    return each, shared or deal(room, size.count)


def _share(cpus: Sequence[int], count: int, each: int) -> list[int] | None:
    """What Slurm has counted cores of its nodes for, where it has: it may have given each VM more than was asked for
    (MaxMemPerCPU of slurm.conf(5), cores with several threads, --threads-per-core). None: the cores do not tell.
    """
    share = sum(cpus) // count
    if share < max(each, 1) or share * count != sum(cpus) or any(cores % share for cores in cpus):
        return None
    return [cores // share for cores in cpus]


def _fill(nodes: Sequence[str], cpus: Sequence[int], sizes: Sequence[Size]) -> tuple[NodeShare, ...]:
    """One node after the other, in the order of the ranks.

    :raise UsageError: they do not fit.
    """
    counts = [0] * len(nodes)
    at, left = 0, cpus[0]
    for each in (size.cpus or 1 for size in sizes for _ in range(size.count)):
        while left < each:
            at += 1
            if at == len(nodes):
                wanted = sum(size.count * (size.cpus or 1) for size in sizes)
                raise UsageError(
                    f"VMs with {wanted} cores in all do not fit in the allocation of {sum(cpus)} cores "
                    f"on {len(nodes)} nodes, in this order"
                )
            left = cpus[at]
        counts[at] += 1
        left -= each
    firsts = accumulate(counts[:-1], initial=0)
    return tuple(NodeShare(node, first, count) for node, first, count in zip(nodes, firsts, counts, strict=True))


def _deal(room: Sequence[int], count: int) -> list[int]:
    """One to each node that has room, again and again: so Slurm counts tasks, for --distribution=block, too
    (_task_layout_block in its slurm_step_layout.c).
    """
    counts = [0] * len(room)
    left = count
    open_nodes = list(range(len(room)))
    while left:
        open_nodes = [index for index in open_nodes if counts[index] < room[index]]
        for index in open_nodes[:left]:
            counts[index] += 1
        left -= min(left, len(open_nodes))
    return counts


def _pack(room: Sequence[int], count: int) -> list[int]:
    """One to each node that has room, and then one node is filled after the other."""
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
