# SPDX-License-Identifier: Apache-2.0
"""Set a job's share of its cluster up on this node: record, plan, apply; undo when any of it fails."""

from __future__ import annotations

import logging
import secrets
import time
import traceback
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

from pvc.config.lines import add_lines
from pvc.errors import ConfigError, HostError, JobError, PvcError, UsageError, is_shortage
from pvc.host import hostbridge, netlink, ovs, underlay, vfio
from pvc.host.hostports import find_busy
from pvc.model.cluster import NodeShare, Placement
from pvc.model.failure import Failure
from pvc.model.host import Grants, JobFacts, NodeFacts
from pvc.model.request import Request, decode_request
from pvc.node import apply, memberships
from pvc.node.context import Context, read_boot_id
from pvc.node.teardown import LEFT, undo_recorded
from pvc.plan import actions, addresses, claims, inputs, names
from pvc.plan import node as node_plan
from pvc.plan.ethernet import Membership
from pvc.plan.forwards import plan_wants
from pvc.plan.grants import take_meters, take_ports, take_slot
from pvc.plan.pci import take_devices
from pvc.plan.placement import place
from pvc.plan.switch import count_meters, is_switched
from pvc.slurm import nodenames
from pvc.state import membership
from pvc.state.ledger import ForeignError, Ledger, Ready, Record, Refusal, UnreadableError, read_jobs
from pvc.texts import clean_lines, clean_text

LOG = logging.getLogger(__name__)
WAS_THERE = "was there"


@dataclass(frozen=True, slots=True)
class _Needs:
    """All that a plan follows from, but for the numbers that this node grants."""

    job: JobFacts
    request: Request
    placement: Placement
    share: NodeShare
    site: node_plan.Site
    memberships: tuple[Membership, ...]
    facts: NodeFacts

    def count_meters(self) -> int:
        return count_meters([(each, each.ranks_of(self.share)) for each in self.memberships])

    def plan(self, grants: Grants) -> node_plan.NodePlan:
        return node_plan.plan_node(self.job, self.request, self.placement, self.site, self.facts, grants)


def set_up(context: Context, job: JobFacts, request_text: str, *, again: bool = True) -> str:
    """Do it; what was done, in a line for the log. Not ``again``: what is done or refused stays as it is.

    A request that cannot be met, a wrong configuration, a store or a Slurm that does not answer, and a lack of what
    users can use up are refusals: they are kept for the launcher, and the node stays in service.

    :raise HostError: this node cannot do its part; nothing of it is left.
    """
    # Any number of steps may ask at once, at their user's will: what is answered needs no lock.
    if not again and (found := _find_answer(context, job)):
        return found
    with context.job_lock(job.job_id):
        ledger = Ledger(context.state_dir, job.job_id)
        if not again and (found := _find_answer(context, job)):
            return found
        record = Record(job.job_id, job.uid, read_boot_id(), opened_ns=time.time_ns())
        try:
            # A refusal that the ledger had no room for would count before what is done now.
            Ledger(context.runtime_dir, job.job_id).remove()
            if ledger.exists():
                # A set-up that was cut short, or another job's of this number: start from nothing.
                LOG.warning("job %d: found an unfinished set-up, undoing it first", job.job_id)
                undo_recorded(context, ledger)
            ledger.open(record)
            context.check_service(job.node)
            return _build(context, job, request_text, ledger, record)
        except ForeignError as err:
            # An earlier set-up that only another version can undo: this one is refused beside it.
            error = JobError(f"this node cannot set up job {job.job_id}", hint="ask its administrator")
            error.__cause__ = err
            return _refuse(context, Ledger(context.runtime_dir, job.job_id), record, error)
        except Exception as err:  # noqa: BLE001 - whatever it is, it is undone, and is a refusal or a fault
            why = _explain(err)
            if isinstance(why, HostError) and not is_shortage(why):
                _undo_half(context, ledger, keep_record=False)
                if not ledger.exists():
                    context.forget_lock(job.job_id)
                raise why from why.__cause__
            _undo_half(context, ledger, keep_record=True)
            return _refuse(context, ledger, record, why)
        except BaseException:
            _undo_half(context, ledger, keep_record=False)
            raise


def _explain(err: Exception) -> PvcError:
    """As an error of ours; which path one of the system is about is its own word, at the end of the message."""
    if isinstance(err, PvcError):
        return err
    wrapped = HostError("the set-up failed")
    wrapped.__cause__ = err
    return wrapped


def _refuse(context: Context, ledger: Ledger, record: Record, why: PvcError) -> str:
    """Keep a refusal for the launcher."""
    context.metrics.fail("setup", why)
    if isinstance(why, ConfigError):
        why = add_lines(why, context.conf_dir)
    told = Failure.of(why)
    if isinstance(why, HostError):
        hint = "this node has no room or memory left: free some, or try another node"
        told = Failure(JobError.exit_code, told.error, hint)
    refused = replace(record, refusal=Refusal(told.exit_code, clean_text(told.error), told.hint))
    try:
        ledger.open(refused)
    except OSError:
        # A user can fill the disk that it is on, but not the file system of the daemon's socket.
        with suppress(OSError):
            Ledger(context.runtime_dir, record.job_id).open(refused)
    return f"refused: {why}"


@contextmanager
def _planning() -> Iterator[None]:
    """What plans compute follows from a user's request: where that fails, it is no fault of the node."""
    try:
        yield
    except (PvcError, OSError, MemoryError):
        raise
    except Exception as err:  # noqa: BLE001 - whichever it is, it is told and logged
        for line in clean_lines(traceback.format_exc()):
            LOG.error("%s", line)
        raise JobError(f"pvc-node cannot plan this request: {type(err).__name__}", hint="its log has more") from None


def _find_answer(context: Context, job: JobFacts) -> str | None:
    """What a set-up that was done or refused says now; None: there was none."""
    try:
        record = context.read_record(job.job_id)
        if record is None or (record.uid, record.boot) != (job.uid, read_boot_id()):
            return None
        answered = record.refusal is not None or Ledger(context.state_dir, job.job_id).read_ready() is not None
    except UnreadableError as err:
        # The cluster may run: what is not understood is left alone, and no step of its user's is a reason to drain.
        context.tell(job.job_id, f"{err}; {err.find_hint()}")
        return f"{LEFT}: {err}"
    return WAS_THERE if answered else None


def _undo_half(context: Context, ledger: Ledger, *, keep_record: bool) -> None:
    # What went wrong first is what is reported; what could not be undone stays in the ledger.
    try:
        undo_recorded(context, ledger, keep_record=keep_record)
    except PvcError as err:
        LOG.warning("undoing a failed set-up: %s", err)


def _build(context: Context, job: JobFacts, request_text: str, ledger: Ledger, record: Record) -> str:
    with _planning():
        needs = _read_needs(context, job, request_text)
    _check_claims(needs)
    share = needs.share
    hands = context.hands()
    networks = [each.network for each in needs.memberships]
    vnis: dict[str, int] = {}
    if networks and share.count:
        # All components of a heterogeneous job are one cluster, with the networks of its first
        ledger.intend([actions.ClaimMembership(job.cluster_id, job.node)])
        member = membership.Member(job.node, needs.facts.address, job.cluster)
        vnis = membership.join(
            context.store(),
            job.cluster_id,
            member,
            networks,
            [claim.job_id for claim in memberships.list_claims(context, but=job.job_id)],
            lambda: memberships.register_again(context),
        )
    with _planning():
        grants = _take_numbers(context, ledger, record, needs, vnis)
        grants = replace(grants, devices=_take_devices(context, ledger, record, needs))
        plan = needs.plan(grants)
    ledger.write_inputs(inputs.collect(job, needs.request, needs.site, needs.facts, grants))
    ledger.intend(plan.actions)
    for step in plan.actions:
        apply.create(step, hands)
    ledger.write_ready(Ready(plan.grant, plan.netns, plan.taps))
    return f"{share.count} VMs, {len(networks)} networks, {len(plan.actions)} actions"


def _check_claims(needs: _Needs) -> None:
    """A range that the node itself needs would cut it off, from its controller at worst.

    :raise ConfigError: the cluster's networks have one.
    """
    networks = [each.network for each in needs.memberships]
    if networks and needs.share.count:
        with netlink.opened("read the node's routes") as links:
            held = links.claims(but=names.UPLINK_GROUP)
        problems = claims.find_conflicts(networks, claims.claims_of(needs.facts, held))
        if problems:
            raise ConfigError(problems, hint=claims.HINT)


def _take_numbers(
    context: Context,
    ledger: Ledger,
    record: Record,
    needs: _Needs,
    vnis: dict[str, int],
) -> Grants:
    """Numbers of this node that no other job here has; recorded before the lock is let go."""
    uplink = node_plan.uplink_network(needs.request, needs.site)
    meters = needs.count_meters()
    switched = any(is_switched(each.network) for each in needs.memberships)
    if not needs.share.count or (uplink is None and not meters and not switched):
        return Grants(vnis, 0, ())
    wants = plan_wants(needs.memberships, needs.share)
    with context.node_lock():
        others = _read_others(context, record.job_id)
        if switched:
            _check_group(record.job_id, [other.job_id for other in others])
        slot: int | None = None
        if uplink is not None:
            slots = {other.uplink_slot for other in others if other.uplink_slot is not None}
            slot = take_slot(slots, addresses.uplink_slots(uplink.ext_network), uplink.name)
        taken = {port for other in others for port in other.ports}
        while busy := find_busy(ports := take_ports(taken, wants)):
            LOG.info("ports that programs of this node have: %s", ", ".join(map(str, sorted(busy))))
            taken |= busy
        numbers = take_meters({meter for other in others for meter in other.meters}, meters)
        mark = _draw_mark({other.mark for other in others}) if switched else ""
        ledger.write_record(replace(record, uplink_slot=slot, ports=ports, meters=numbers, mark=mark))
    return Grants(vnis, slot or 0, ports, numbers, mark=mark)


def _read_others(context: Context, job_id: int) -> list[Record]:
    """The records of this node's other jobs.

    :raise JobError: one is not understood, so nobody knows which numbers its job has.
    """
    try:
        found = [
            Ledger(context.state_dir, each).read_record() for each in read_jobs(context.state_dir) if each != job_id
        ]
    except UnreadableError as err:
        raise JobError("this node does not know which numbers are free", hint="ask its administrator") from err
    return [each for each in found if each is not None]


def _check_group(job_id: int, others: Sequence[int]) -> None:
    """:raise JobError: the devices of another job here would go with those of this one.

    Links are grouped by 28 bits of their job's number. In a federation the upper bits are the cluster that the job is
    from (slurm.conf(5), MaxJobId), so jobs of two clusters whose numbers there are the same may differ above them only.
    """
    for other in others:
        if names.link_group(other) == names.link_group(job_id):
            raise JobError(
                f"job {job_id} cannot be on this node beside job {other}: only their upper bits differ",
                hint="submit it again, for another number",
            )


def _draw_mark(taken: Set[str]) -> str:
    while True:
        mark = names.chance_mark(secrets.randbelow(names.MARKS))
        if mark not in taken:
            return mark


def _take_devices(context: Context, ledger: Ledger, record: Record, needs: _Needs) -> dict[str, tuple[str, ...]]:
    """PCI devices of this node that no other job here has; recorded before the lock is let go."""
    passthroughs = node_plan.plan_passthroughs(needs.request, needs.site)
    if not passthroughs or not needs.share.count:
        return {}
    with context.node_lock():
        taken = {address for other in _read_others(context, record.job_id) for address in other.devices}
        found = take_devices(taken, passthroughs, needs.share, needs.facts.devices, needs.job.gres)
        devices = tuple(address for each in found.values() for address in each)
        ledger.write_record(replace(ledger.read_record() or record, devices=devices))
    return found


def plan_dry(context: Context, job: JobFacts, request_text: str) -> node_plan.NodePlan:
    """The plan of a set-up with the lowest numbers granted; nothing is done or recorded.

    :raise PvcError: the request, the configuration or the node do not allow it.
    """
    needs = _read_needs(context, job, request_text)
    vnis = {each.network.name: each.network.min_vni + each.index for each in needs.memberships}
    ports = take_ports(set(), plan_wants(needs.memberships, needs.share))
    passthroughs = node_plan.plan_passthroughs(needs.request, needs.site)
    devices = take_devices(set(), passthroughs, needs.share, needs.facts.devices, job.gres)
    meters = take_meters(set(), needs.count_meters())
    return needs.plan(Grants(vnis, 0, ports, meters, devices))


def _read_needs(context: Context, job: JobFacts, request_text: str) -> _Needs:
    try:
        request = decode_request(request_text)
    except ValueError as err:
        raise UsageError("the request that came with the job cannot be read", hint="use pvc alloc or --pvc=") from err
    if job.het_job_id and not job.components:
        raise JobError(
            f"Slurm's controller did not tell which nodes the other components of job {job.job_id} have",
            hint="try again; on this node, scontrol show job has to answer",
        )
    placement = place(job.nodes, job.cpus, request, job.parts)
    site = context.site()
    memberships = node_plan.plan_memberships(request, site)
    switched = any(is_switched(each.network) for each in memberships)
    datapath = ovs.read_datapath() if switched else "netdev"
    suffixes = sorted({each.network.host_suffix for each in memberships})
    return _Needs(
        job,
        request,
        placement,
        node_plan.find_share(placement, job.node),
        site,
        memberships,
        _read_host(
            underlay.read_facts(
                job.node,
                job.nodes,
                context.config().batch.underlay_device,
                suffixes=suffixes,
                ovs_datapath=datapath,
                sysctl_record=context.hands().sysctl_record,
                locate=nodenames.locate,
            ),
            request,
            site,
        ),
    )


def _read_host(facts: NodeFacts, request: Request, site: node_plan.Site) -> NodeFacts:
    """The facts with those of what the site's own networks need."""
    wanted = {each.network.host_bridge for each in node_plan.plan_attachments(request, site)}
    found = {name: hostbridge.read_bridge(name) for name in sorted(wanted)}
    bridges = {name: bridge for name, bridge in found.items() if bridge is not None}
    if not node_plan.plan_passthroughs(request, site):
        return replace(facts, bridges=bridges)
    # Those of other networks, too: other jobs may have them, and a group is whole.
    listed = {address for network in site.devices.values() for address in network.host_devices}
    devices = {address: vfio.read_device(address) for address in sorted(listed)}
    return replace(facts, bridges=bridges, devices={key: each for key, each in devices.items() if each is not None})
