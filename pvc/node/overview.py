# SPDX-License-Identifier: Apache-2.0
"""What root is shown of this node and of the site; nothing is changed."""

from __future__ import annotations

import pwd
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from pvc.errors import JobError, PvcError
from pvc.model.network import Layer, PciNetwork
from pvc.model.nodeview import JobPhase, NodeJob, NodeView, Share, SiteCluster
from pvc.node import strays, sweeper
from pvc.node.context import Context
from pvc.node.orders import tell_daemon
from pvc.plan import actions, addresses
from pvc.slurm import control
from pvc.slurm.job import read_queue
from pvc.state import membership
from pvc.state.drain import read_drain
from pvc.state.ledger import Ledger, Record, UnreadableError, read_jobs


def view_node(context: Context, node: str) -> NodeView:
    """This node, whose name in Slurm is ``node``."""
    problems: list[str] = []
    active: set[int] | None = None
    try:
        active = control.read_node_jobs(node)
    except JobError as err:
        problems.append(str(err))
    recorded = sorted({*read_jobs(context.runtime_dir), *read_jobs(context.state_dir)})
    jobs = [_view_job(context, job_id, active) for job_id in recorded]
    try:
        jobs += [_view_stray(context, job_id, active) for job_id in sorted(strays.find(context))]
    except PvcError as err:
        problems.append(str(err))
    shares: tuple[Share, ...] = ()
    unswept = False
    try:
        shares = tuple(_count(context, jobs))
        unswept = not sweeper.is_clean(context)
    except (PvcError, OSError) as err:
        problems.append(str(err))
    daemon = None
    try:
        daemon = tell_daemon(context.runtime_dir, "state")
    except PvcError as err:
        problems.append(str(err))
    return NodeView(node, daemon, read_drain(context.state_dir), tuple(jobs), shares, unswept, tuple(problems))


def view_site(context: Context) -> tuple[SiteCluster, ...]:
    """All clusters that the state store has, with Slurm's word for each.

    :raise PvcError: the store or Slurm does not answer.
    """
    queue = {job.job_id: job for job in read_queue(all_users=True)}
    found = []
    for job_id, (nodes, vnis) in sorted(membership.read_clusters(context.store()).items()):
        job = queue.get(job_id)
        facts = (job.user, job.state, job.elapsed) if job is not None else ("", "", "")
        found.append(SiteCluster(job_id, nodes, vnis, *facts))
    return tuple(found)


def _view_job(context: Context, job_id: int, active: set[int] | None) -> NodeJob:
    known = job_id in active if active is not None else None
    ledger = Ledger(context.state_dir, job_id)
    try:
        record = context.read_record(job_id)
        ready = ledger.read_ready()
    except UnreadableError as err:
        return NodeJob(job_id, JobPhase.UNREADABLE, known, text=str(err))
    if record is None:
        return NodeJob(job_id, JobPhase.UNFINISHED, known)
    inputs = ledger.read_inputs()
    phase = JobPhase.READY if ready is not None else JobPhase.REFUSED if record.refusal else JobPhase.UNFINISHED
    return NodeJob(
        job_id,
        phase,
        known,
        record.uid,
        _name(record.uid),
        record.opened_ns / 1e9 if record.opened_ns else None,
        len(ready.grant.vms) if ready is not None else 0,
        tuple(inputs.grants.vnis.values()) if inputs is not None else (),
        record.ports,
        record.devices,
        record.refusal.message if record.refusal is not None else "",
        ledger.read_upkeep(),
    )


def _view_stray(context: Context, job_id: int, active: set[int] | None) -> NodeJob:
    known = job_id in active if active is not None else None
    return NodeJob(job_id, JobPhase.NOBODYS, known, text=", ".join(_describe(strays.collect(context, job_id))))


def _describe(steps: Iterable[actions.Action]) -> Iterator[str]:
    for step in steps:
        match step:
            case actions.MakeRunDir():
                yield f"directory {step.path}"
            case actions.AddNetns():
                yield f"namespace {step.netns}"
            case actions.AddSwitchTaps():
                yield f"{len(step.names)} devices"
            case actions.AddSwitchPorts():
                yield f"ports of {step.bridge}"
            case actions.LoadRules():
                yield f"nftables tables {', '.join(' '.join(each) for each in step.tables)}"
            case actions.SetSysctl():
                yield f"setting {step.key}"
            case actions.StartDnsmasq():
                yield f"name server in {step.directory}"


def _count(context: Context, jobs: list[NodeJob]) -> Iterator[Share]:
    """:raise ConfigError: nobody knows how many there are."""
    config = context.config()
    records = [found for each in jobs if (found := _find_record(context, each.job_id)) is not None]
    ethernets = config.ethernets.values()
    taken = {port for record in records for port in record.ports}
    ranges = {(each.min_host_port, each.max_host_port) for network in ethernets for each in network.reverse_nat}
    for first, last in sorted(ranges):
        yield Share(f"ports {first}-{last}", sum(first <= port <= last for port in taken), last - first + 1)
    slots = {record.uplink_slot for record in records if record.uplink_slot is not None}
    layer3 = [each for each in ethernets if each.layer is Layer.L3]
    if layer3:
        yield Share("uplinks", len(slots), min(addresses.uplink_slots(each.ext_network) for each in layer3))
    for network in ethernets:
        held = sum(network.min_vni <= vni <= network.max_vni for each in jobs for vni in each.vnis)
        yield Share(f"VNIs {network.name}", held, network.max_vni - network.min_vni + 1)
    pci = [each for each in config.networks.values() if isinstance(each, PciNetwork)]
    listed = {address for each in pci for address in each.host_devices}
    if listed:
        yield Share("PCI devices", len(listed & {each for record in records for each in record.devices}), len(listed))
    yield _room("scratch", Path(config.batch.run_dir))
    yield _room("records", context.state_dir)


def _room(what: str, path: Path) -> Share:
    place = next(each for each in (path, *path.parents) if each.exists())
    usage = shutil.disk_usage(place)
    return Share(f"{what} in {path}", usage.used >> 20, usage.total >> 20, "MiB")


def _find_record(context: Context, job_id: int) -> Record | None:
    try:
        return context.read_record(job_id)
    except UnreadableError:
        return None


def _name(uid: int, find: Callable[[int], pwd.struct_passwd] = pwd.getpwuid) -> str:
    try:
        return find(uid).pw_name
    except KeyError:
        return str(uid)
