# SPDX-License-Identifier: Apache-2.0
"""A cluster as its launcher describes it: to the supervisors, and to the commands that come later."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from pvc.errors import JobError
from pvc.model.cluster import ClusterKeys, ClusterRecord, ClusterSpec, NodeEndpoint, Placement
from pvc.model.request import Request
from pvc.ops.definition import LaunchOrder
from pvc.plan.placement import place
from pvc.slurm.job import JobInfo

_DEFAULT_MEMORY_MIB = 1024  # of a VM where Slurm does not account for memory


def place_vms(components: Sequence[JobInfo], request: Request) -> Placement:
    """Which node runs which VMs.

    :raise UsageError: they do not fit.
    """
    nodes = [node for each in components for node in each.nodes]
    cpus = [count for each in components for count in each.cpus]
    return place(nodes, cpus, request, [len(each.nodes) for each in components] if len(components) > 1 else ())


def list_nodes(placement: Placement) -> list[list[str]]:
    """The nodes that run VMs, component by component."""
    used = [share for share in placement.shares if share.count]
    return [[share.node for share in shares] for _, shares in groupby(used, key=lambda share: share.component)]


def make_spec(
    order: LaunchOrder,
    components: Sequence[JobInfo],
    placement: Placement,
    keys: ClusterKeys,
    *,
    ends_job: bool,
) -> ClusterSpec:
    """What each supervisor is sent; ``ends_job``: the job was made for this cluster."""
    leader = components[0]
    return ClusterSpec(
        job_id=leader.job_id,
        name=leader.name,
        definition=order.definition,
        placement=placement,
        groups=order.groups,
        templates=order.templates,
        memory_mib=_find_memory_mib(order, components, placement),
        accel=order.accel,
        libvirt_hook=order.libvirt_hook,
        authorized_keys=(keys.ssh_key_pub, *read_public_keys()),
        keys=keys,
        ends_job=ends_job,
        jobs=_list_jobs(components),
    )


def make_record(
    order: LaunchOrder,
    components: Sequence[JobInfo],
    placement: Placement,
    endpoints: tuple[NodeEndpoint, ...],
    created: float,
) -> ClusterRecord:
    """What the other commands find; this process is the launcher."""
    leader = components[0]
    return ClusterRecord(
        job_id=leader.job_id,
        name=leader.name,
        definition=order.definition,
        created=created,
        launcher_host=socket.gethostname(),
        launcher_pid=os.getpid(),
        placement=placement,
        groups=order.groups,
        endpoints=endpoints,
        jobs=_list_jobs(components),
    )


def _list_jobs(components: Sequence[JobInfo]) -> tuple[int, ...]:
    return tuple(each.job_id for each in components) if len(components) > 1 else ()


def _find_memory_mib(order: LaunchOrder, components: Sequence[JobInfo], placement: Placement) -> tuple[int, ...]:
    """Memory of the allocation for one VM of each size.

    :raise JobError: a node's VMs shall have more than the job has there.
    """
    found = []
    for index, size in enumerate(placement.sizes):
        known = order.memory_mib[index] if index < len(order.memory_mib) else None
        number = index if len(components) > 1 else 0
        most = max(share.count for share in placement.shares if share.component == number)
        found.append(known or components[number].vm_memory_mib(size.cpus or 1, most) or _DEFAULT_MEMORY_MIB)
    if any(order.memory_mib):
        _check_memory(found, components, placement)
    return tuple(found)


def _check_memory(memory_mib: Sequence[int], components: Sequence[JobInfo], placement: Placement) -> None:
    """What was asked for each VM may not be there where Slurm gave whole nodes of different sizes.

    :raise JobError: it is not.
    """
    rank_memory = [each for size, each in zip(placement.sizes, memory_mib, strict=True) for _ in range(size.count)]
    places = [(each, index) for each in components for index in range(len(each.nodes))]
    for share, (component, index) in zip(placement.shares, places, strict=True):
        needed = sum(rank_memory[share.first_rank : share.first_rank + share.count])
        there = component.node_memory_mib(index)
        if there is not None and needed > there:
            raise JobError(
                f"the job has {there} MiB of memory on {share.node}, and its {share.count} VMs need {needed} MiB",
                hint="spread them over more nodes with -N, or give each less memory with -m",
            )


def read_public_keys() -> tuple[str, ...]:
    """The caller's public ssh keys, which every guest will accept."""
    keys: list[str] = []
    for path in sorted((Path.home() / ".ssh").glob("*.pub")):
        try:
            text = path.read_text(errors="replace")
        except OSError:
            continue
        keys += [line.strip() for line in text.splitlines() if line.startswith(("ssh-", "ecdsa-", "sk-"))]
    return tuple(dict.fromkeys(keys))
