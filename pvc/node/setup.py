"""Set a job's share of its cluster up on this node: record, plan, apply; undo when any of it fails."""

from __future__ import annotations

import logging
from dataclasses import replace

from pvc.errors import ConfigError, HostError, PvcError, StateError, UsageError
from pvc.host import underlay
from pvc.model.cluster import NodeShare
from pvc.model.host import Grants, JobFacts
from pvc.model.request import Request, decode_request
from pvc.node import apply
from pvc.node.context import Context, read_boot_id
from pvc.node.teardown import undo_recorded
from pvc.plan import actions, addresses
from pvc.plan import node as node_plan
from pvc.plan.grants import take_ports, take_slot
from pvc.plan.placement import place
from pvc.state import membership
from pvc.state.ledger import Ledger, Ready, Record, Refusal, read_jobs

LOG = logging.getLogger(__name__)


def set_up(context: Context, job: JobFacts, request_text: str) -> str:
    """Do it; what was done, in a line for the log.

    A request that cannot be met, a wrong configuration and a store that does not answer are refusals: they
    are kept for the launcher, and the node stays in service.

    :raise HostError: this node cannot do its part; nothing of it is left.
    """
    with context.job_lock(job.job_id):
        ledger = Ledger(context.state_dir, job.job_id)
        if ledger.exists():
            # A set-up that was cut short, or another job's of this number: start from nothing.
            LOG.warning("job %d: found an unfinished set-up, undoing it first", job.job_id)
            undo_recorded(context, ledger)
        record = Record(job.job_id, job.uid, read_boot_id())
        try:
            ledger.open(record)
        except OSError as err:
            raise HostError(f"cannot write {ledger.path}") from err
        try:
            return _build(context, job, request_text, ledger, record)
        except (UsageError, ConfigError, StateError) as err:
            _undo_half(context, ledger, keep_record=True)
            refusal = Refusal(err.exit_code, str(err), err.find_hint())
            ledger.write_record(replace(record, refusal=refusal))
            return f"refused: {err}"
        except BaseException:
            _undo_half(context, ledger, keep_record=False)
            if not ledger.exists():
                context.forget_lock(job.job_id)
            raise


def _undo_half(context: Context, ledger: Ledger, *, keep_record: bool) -> None:
    # What went wrong first is what is reported; what could not be undone stays in the ledger.
    try:
        undo_recorded(context, ledger, keep_record=keep_record)
    except PvcError as err:
        LOG.warning("undoing a failed set-up: %s", err)


def _build(context: Context, job: JobFacts, request_text: str, ledger: Ledger, record: Record) -> str:
    try:
        request = decode_request(request_text)
    except ValueError as err:
        raise UsageError("the request that came with the job cannot be read", hint="use pvc alloc or --pvc=") from err
    placement = place(job.nodes, job.cpus, request)
    share = node_plan.find_share(placement, job.node)
    site = context.site()
    memberships = node_plan.plan_memberships(request, site)
    facts = underlay.read_facts(job.node, job.nodes, context.config().batch.underlay_device)
    hands = context.hands()
    networks = [each.network for each in memberships]
    vnis: dict[str, int] = {}
    if networks and share.count:
        ledger.intend([actions.ClaimMembership(job.job_id, job.node)])
        vnis = membership.join(context.store(), job.job_id, job.node, facts.address, networks)
    grants = _take_numbers(context, ledger, record, request, site, share, vnis)
    plan = node_plan.plan_node(job, request, placement, site, facts, grants)
    ledger.intend(plan.actions)
    for step in plan.actions:
        apply.create(step, hands)
    ledger.write_ready(Ready(plan.grant, plan.netns, plan.taps))
    return f"{share.count} VMs, {len(networks)} networks, {len(plan.actions)} actions"


def _take_numbers(
    context: Context,
    ledger: Ledger,
    record: Record,
    request: Request,
    site: node_plan.Site,
    share: NodeShare,
    vnis: dict[str, int],
) -> Grants:
    """Numbers of this node that no other job here has; recorded before the lock is let go."""
    uplink = node_plan.uplink_network(request, site)
    if uplink is None or not share.count:
        return Grants(vnis, 0, ())
    count, (first, last) = node_plan.count_ports(request, site, share)
    with context.node_lock():
        others = [
            other
            for job_id in read_jobs(context.state_dir)
            if job_id != record.job_id and (other := Ledger(context.state_dir, job_id).read_record()) is not None
        ]
        slots = {other.uplink_slot for other in others if other.uplink_slot is not None}
        slot = take_slot(slots, addresses.uplink_slots(uplink.ext_network), uplink.name)
        ports = take_ports({port for other in others for port in other.ports}, count, first, last, uplink.name)
        ledger.write_record(replace(record, uplink_slot=slot, ports=ports))
    return Grants(vnis, slot, ports)


def plan_dry(context: Context, job: JobFacts, request_text: str) -> node_plan.NodePlan:
    """The plan of a set-up with the lowest numbers granted; nothing is done or recorded.

    :raise PvcError: the request, the configuration or the node do not allow it.
    """
    try:
        request = decode_request(request_text)
    except ValueError as err:
        raise UsageError(f"{request_text!r} is not a request") from err
    placement = place(job.nodes, job.cpus, request)
    share = node_plan.find_share(placement, job.node)
    site = context.site()
    memberships = node_plan.plan_memberships(request, site)
    facts = underlay.read_facts(job.node, job.nodes, context.config().batch.underlay_device)
    vnis = {each.network.name: each.network.min_vni + each.index for each in memberships}
    count, (first, last) = node_plan.count_ports(request, site, share)
    grants = Grants(vnis, 0, take_ports(set(), count, first, last, "any"))
    return node_plan.plan_node(job, request, placement, site, facts, grants)
