# SPDX-License-Identifier: Apache-2.0
"""What a cluster's VMs are doing, and waiting for them to answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from pvc import codec
from pvc.errors import GuestError, GuestTimeoutError, UsageError
from pvc.model.cluster import ClusterRecord, NodeEndpoint
from pvc.model.netview import Fault, Upkeep
from pvc.model.vm import ENDED, Phase, VmStatus
from pvc.ops.control import Control, NodeAnswer

# What does not answer by itself any more.
_STANDS = (*ENDED, Phase.PAUSED)
_POLL_S = 0.5
# A node that boots guests on all its cores may leave its supervisor little time.
_ANSWER_S = 15.0
_PATIENCE_S = 30.0
_FAULTS_S = 2.0


def parse_vms(words: Sequence[str], count: int) -> tuple[int, ...]:
    """Ranks of "vm0", "vm[0-3,7]" and so on, in ascending order; of no words, none.

    :raise UsageError: not names of this cluster's VMs, or a set that is empty.
    """
    names: list[str] = []
    for word in words:
        if "[" in word or "," in word or any(sign in word for sign in "!&^"):
            from ClusterShell.NodeSet import NodeSet, NodeSetParseError

            try:
                found = list(NodeSet(word))
            except NodeSetParseError as err:
                raise UsageError(f"{word!r} is not a set of VMs such as vm[0-3]") from err
            if not found:
                raise UsageError(f"there is no VM in {word!r}")
            names += found
        else:
            names.append(word)
    return tuple(sorted({_rank(name, count) for name in names}))


def _rank(name: str, count: int) -> int:
    digits = name.removeprefix("vm")
    if not name.startswith("vm") or not digits.isdecimal() or not digits.isascii() or len(digits) > 6:
        raise UsageError(f"{name!r} is not the name of a VM", hint=f"this cluster has {_names(count)}")
    if int(digits) >= count:
        raise UsageError(f"there is no {name}", hint=f"this cluster has {_names(count)}")
    return int(digits)


def _names(count: int) -> str:
    return "vm0" if count == 1 else f"vm0 to vm{count - 1}"


def find_node(record: ClusterRecord, rank: int) -> str:
    """The node that runs a VM."""
    return next(
        share.node for share in record.placement.shares if share.first_rank <= rank < share.first_rank + share.count
    )


def find_endpoint(record: ClusterRecord, rank: int) -> NodeEndpoint:
    """The control port that speaks for a VM.

    :raise GuestError: its node has none.
    """
    node = find_node(record, rank)
    for endpoint in record.endpoints:
        if endpoint.node == node:
            return endpoint
    raise GuestError(f"vm{rank} has no supervisor on {node}")


def merge(record: ClusterRecord, answers: Sequence[NodeAnswer], ranks: Sequence[int]) -> tuple[VmStatus, ...]:
    """The status of each VM asked for; one whose node is silent has failed, as far as anyone can tell."""
    known = {vm.rank: vm for answer in answers for vm in answer.vms}
    errors = {answer.node: answer.error for answer in answers if answer.error is not None}
    return tuple(known.get(rank) or _unknown(record, rank, errors) for rank in ranks)


def _unknown(record: ClusterRecord, rank: int, errors: dict[str, str]) -> VmStatus:
    node = find_node(record, rank)
    template = next(
        group.template for group in record.groups if group.first_rank <= rank < group.first_rank + group.count
    )
    silent = node in errors
    return VmStatus(
        rank=rank,
        name=f"vm{rank}",
        template=template,
        node=node,
        phase=Phase.FAILED if silent else Phase.WAITING,
        cpus=record.placement.cpus_of(rank),
        memory_mib=0,
        addresses=(),
        ssh_host=None,
        ssh_port=None,
        accel="",
        pinned=(),
        started=None,
        reachable=None,
        detail=errors.get(node) or "not started yet",
    )


def read_status(control: Control, ranks: Sequence[int], *, timeout_s: float = 5.0) -> tuple[VmStatus, ...]:
    """Ask the nodes of these VMs."""
    record = control.record
    nodes = {find_node(record, rank) for rank in ranks}
    return merge(record, control.status(timeout_s=timeout_s, nodes=sorted(nodes)), ranks)


def read_faults(control: Control, ranks: Sequence[int]) -> dict[str, tuple[Fault, ...]]:
    """What of the cluster's networks the nodes of these VMs have found to be not as it was set up; who does not know,
    or does not say so at once, is left out.

    :raise EndedError: the cluster has ended.
    """
    nodes = sorted({find_node(control.record, rank) for rank in ranks})
    found: dict[str, tuple[Fault, ...]] = {}
    for reply in control.ask_nodes({"op": "upkeep"}, timeout_s=_FAULTS_S, nodes=nodes):
        with suppress(ValueError, KeyError):
            standing = codec.from_data(Upkeep, reply.answer["report"]).standing
            if standing:
                found[reply.node] = standing
    return found


def has_no_ssh(vm: VmStatus) -> bool:
    """Whether no port of the node leads to the VM's ssh, so it can never be found reachable."""
    return vm.ssh_port is None and vm.phase not in (Phase.WAITING, Phase.NETWORK)


def wait_reachable(
    control: Control,
    ranks: Sequence[int],
    timeout_s: float,
    *,
    on_status: Callable[[Sequence[VmStatus]], None] | None = None,
) -> tuple[VmStatus, ...]:
    """Until every one of these VMs answers ssh. A node that is silent for half a minute has lost its VMs.

    :raise GuestError: those that do not answer have ended or have no ssh port; it says which and why.
    :raise GuestTimeoutError: some did not answer in time; ``gathered`` says how far each of them has come, by its name.
    :raise EndedError: the cluster has ended.
    """
    deadline = time.monotonic() + timeout_s
    nodes = sorted({find_node(control.record, rank) for rank in ranks})
    silent_since: dict[str, float] = {}
    while True:
        answers = control.status(timeout_s=_ANSWER_S, nodes=nodes)
        now = time.monotonic()
        silent = [answer.node for answer in answers if answer.error is not None]
        silent_since = {node: silent_since.get(node, now) for node in silent}
        waited_for = {node for node, since in silent_since.items() if now - since < min(_PATIENCE_S, timeout_s)}
        vms = merge(control.record, answers, ranks)
        if on_status is not None:
            on_status(vms)
        open_vms = [vm for vm in vms if vm.phase is not Phase.REACHABLE]
        if not open_vms:
            return vms
        lost = [vm for vm in open_vms if vm.node not in waited_for and (vm.phase in _STANDS or has_no_ssh(vm))]
        if len(lost) == len(open_vms) or time.monotonic() >= deadline:
            text = _explain(open_vms, timeout_s)
            if len(lost) == len(open_vms):
                raise GuestError(text)
            gathered = {vm.name: f"{vm.phase.value}{f' ({vm.detail})' if vm.detail else ''}" for vm in open_vms}
            raise GuestTimeoutError(text, gathered=gathered)
        time.sleep(min(_POLL_S, max(0.0, deadline - time.monotonic())))


def _explain(vms: Sequence[VmStatus], timeout_s: float) -> str:
    parts = []
    for vm in vms[:5]:
        if vm.phase in _STANDS:
            verb = "has" if vm.phase is Phase.FAILED else "is"
            parts.append(f"{vm.name} {verb} {vm.phase.value}" + (f" ({vm.detail})" if vm.detail else ""))
        elif has_no_ssh(vm):
            parts.append(f"{vm.name} runs, but no port leads to its ssh")
        else:
            parts.append(f"{vm.name} does not answer after {timeout_s:g} s ({vm.phase.value})")
    if len(vms) > 5:
        parts.append(f"and {len(vms) - 5} more")
    return "; ".join(parts)
