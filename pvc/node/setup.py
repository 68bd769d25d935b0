"""Set a job's share of its cluster up on this node: record, plan, apply; undo when any of it fails."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace

from pvc.config.lines import add_lines
from pvc.errors import ConfigError, HostError, JobError, PvcError, StateError, UsageError
from pvc.host import hostbridge, ovs, underlay, vfio
from pvc.model.cluster import NodeShare, Placement
from pvc.model.host import Grants, JobFacts, NodeFacts
from pvc.model.request import Request, decode_request
from pvc.node import apply
from pvc.node.context import Context, read_boot_id
from pvc.node.teardown import undo_recorded
from pvc.plan import actions, addresses, inputs
from pvc.plan import node as node_plan
from pvc.plan.ethernet import Membership
from pvc.plan.forwards import plan_wants
from pvc.plan.grants import take_meters, take_ports, take_slot
from pvc.plan.pci import take_devices
from pvc.plan.placement import place
from pvc.plan.switch import count_meters, is_switched
from pvc.state import membership
from pvc.state.ledger import Ledger, Ready, Record, Refusal, read_jobs

LOG = logging.getLogger(__name__)


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

    A request that cannot be met, a wrong configuration and a store or a Slurm that does not answer are refusals:
    they are kept for the launcher, and the node stays in service.

    :raise HostError: this node cannot do its part; nothing of it is left.
    """
    with context.job_lock(job.job_id):
        ledger = Ledger(context.state_dir, job.job_id)
        if ledger.exists():
            if not again and _is_answered(ledger, job):
                return "was there"
            # A set-up that was cut short, or another job's of this number: start from nothing.
            LOG.warning("job %d: found an unfinished set-up, undoing it first", job.job_id)
            undo_recorded(context, ledger)
        record = Record(job.job_id, job.uid, read_boot_id(), opened_ns=time.time_ns())
        try:
            ledger.open(record)
        except OSError as err:
            raise HostError(f"cannot write {ledger.path}") from err
        try:
            return _build(context, job, request_text, ledger, record)
        except (UsageError, ConfigError, JobError, StateError) as found:
            _undo_half(context, ledger, keep_record=True)
            refused: PvcError = add_lines(found, context.conf_dir) if isinstance(found, ConfigError) else found
            refusal = Refusal(refused.exit_code, str(refused), refused.find_hint())
            ledger.write_record(replace(record, refusal=refusal))
            return f"refused: {refused}"
        except BaseException:
            _undo_half(context, ledger, keep_record=False)
            if not ledger.exists():
                context.forget_lock(job.job_id)
            raise


def _is_answered(ledger: Ledger, job: JobFacts) -> bool:
    record = ledger.read_record()
    if record is None or (record.uid, record.boot) != (job.uid, read_boot_id()):
        return False
    return record.refusal is not None or ledger.read_ready() is not None


def _undo_half(context: Context, ledger: Ledger, *, keep_record: bool) -> None:
    # What went wrong first is what is reported; what could not be undone stays in the ledger.
    try:
        undo_recorded(context, ledger, keep_record=keep_record)
    except PvcError as err:
        LOG.warning("undoing a failed set-up: %s", err)


def _build(context: Context, job: JobFacts, request_text: str, ledger: Ledger, record: Record) -> str:
    needs = _read_needs(context, job, request_text)
    share = needs.share
    hands = context.hands()
    networks = [each.network for each in needs.memberships]
    vnis: dict[str, int] = {}
    if networks and share.count:
        # All components of a heterogeneous job are one cluster, with the networks of its first
        ledger.intend([actions.ClaimMembership(job.cluster_id, job.node)])
        vnis = membership.join(context.store(), job.cluster_id, job.node, needs.facts.address, networks)
    grants = _take_numbers(context, ledger, record, needs, vnis)
    grants = replace(grants, devices=_take_devices(context, ledger, record, needs))
    plan = needs.plan(grants)
    ledger.write_inputs(inputs.collect(job, needs.request, needs.site, needs.facts, grants))
    ledger.intend(plan.actions)
    for step in plan.actions:
        apply.create(step, hands)
    ledger.write_ready(Ready(plan.grant, plan.netns, plan.taps))
    return f"{share.count} VMs, {len(networks)} networks, {len(plan.actions)} actions"


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
    if not needs.share.count or (uplink is None and not meters):
        return Grants(vnis, 0, ())
    wants = plan_wants(needs.memberships, needs.share)
    with context.node_lock():
        others = [
            other
            for job_id in read_jobs(context.state_dir)
            if job_id != record.job_id and (other := Ledger(context.state_dir, job_id).read_record()) is not None
        ]
        slot: int | None = None
        if uplink is not None:
            slots = {other.uplink_slot for other in others if other.uplink_slot is not None}
            slot = take_slot(slots, addresses.uplink_slots(uplink.ext_network), uplink.name)
        ports = take_ports({port for other in others for port in other.ports}, wants)
        numbers = take_meters({meter for other in others for meter in other.meters}, meters)
        ledger.write_record(replace(record, uplink_slot=slot, ports=ports, meters=numbers))
    return Grants(vnis, slot or 0, ports, numbers)


def _take_devices(context: Context, ledger: Ledger, record: Record, needs: _Needs) -> dict[str, tuple[str, ...]]:
    """PCI devices of this node that no other job here has; recorded before the lock is let go."""
    passthroughs = node_plan.plan_passthroughs(needs.request, needs.site)
    if not passthroughs or not needs.share.count:
        return {}
    with context.node_lock():
        taken = {
            address
            for job_id in read_jobs(context.state_dir)
            if job_id != record.job_id and (other := Ledger(context.state_dir, job_id).read_record()) is not None
            for address in other.devices
        }
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
