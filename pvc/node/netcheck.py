# SPDX-License-Identifier: Apache-2.0
"""Comparing this node with what was planned for a job: reads what there is; the judgement is plan.diagnosis."""

from __future__ import annotations

from pathlib import Path

from pvc.host import dnsmasq, netlink, netns, nft, ovsview, portprogs, sysctl, vfio, walls, wayout
from pvc.host.entries import read_tunnels
from pvc.model.netview import CheckReport, Fault
from pvc.model.network import Layer
from pvc.node.netview import read_inputs
from pvc.plan import actions
from pvc.plan.diagnosis import WAY_OUT, Device, Seen, diagnose, programmed, settings_of
from pvc.plan.inputs import Inputs
from pvc.plan.node import NodePlan
from pvc.plan.walls import open_way
from pvc.state.ledger import Ledger


def check(ledger: Ledger) -> CheckReport:
    """What of a job's networks is not as it was set up.

    :raise HostError: the plan is not known, or the node cannot be read.
    """
    inputs = read_inputs(ledger)
    plan = inputs.plan()
    faults = diagnose(inputs, plan.actions, observe(plan))
    faults += _try_way_out(inputs, plan) if not faults else ()
    return CheckReport(inputs.job.node, faults, len(plan.actions), ledger.read_upkeep().mended)


def _try_way_out(inputs: Inputs, plan: NodePlan) -> tuple[Fault, ...]:
    """A fault where somebody else's rules keep on this node what VMs send outside."""
    uplinks = [step for step in plan.actions if isinstance(step, actions.AddUplink)]
    if not uplinks:
        return ()
    families = [wayout.IPV4, *([wayout.IPV6] if uplinks[0].addresses6 else [])]
    shut = [each for each in families if wayout.is_open(plan.netns, each) is False]
    if not shut:
        return ()
    found = walls.read_walls("forward", None).of([each.name for each in shut])
    by = f": {told}" if (told := found.describe()) else ""
    over = " and ".join(each.shown for each in shut)
    text = f"what VMs send to networks outside does not leave this node over {over}, and what the node sends does{by}"
    prefixes = sorted({each.network.dev_prefix for each in inputs.memberships() if each.network.layer is Layer.L3})
    commands = open_way(found, prefixes, walls.read_others(prefixes))
    return (Fault(text, f"as root: {commands}" if commands else WAY_OUT),)


def observe(plan: NodePlan) -> Seen:
    """What there is now of the kinds of things that the plan has."""
    inside = plan.netns if netns.exists(plan.netns) else None
    places = [None, inside] if inside else [None]
    devices = {(place, name): device for place in places for name, device in _devices(place).items()}
    ports = [name for step in plan.actions if isinstance(step, actions.AddPrograms) for name in programmed(step)]
    wanted = {step.netns for step in plan.actions if isinstance(step, actions.LoadRules)}
    rules = {
        (place, family, table): count
        for place in places
        if place in wanted
        for (family, table), count in nft.read_rules(place).items()
    }
    servers = [step.directory for step in plan.actions if isinstance(step, actions.StartDnsmasq)]
    keys = [key for step in plan.actions for key in settings_of(step)]
    flows = [step for step in plan.actions if isinstance(step, actions.LoadFlows)]
    bus = vfio.Bus()
    return Seen(
        namespaces=frozenset({inside} if inside else ()),
        devices=devices,
        tunnels=read_tunnels(inside) if inside else {},
        guarded=netns.run_inside(inside, lambda: portprogs.read_attached(ports)) if inside else frozenset(),
        rules=rules,
        services=frozenset(each for each in servers if dnsmasq.is_running(Path(each))),
        settings={key: value for key in keys if (value := sysctl.read(key))},
        drivers={
            step.address: bus.driver(step.address) for step in plan.actions if isinstance(step, actions.BindDevice)
        },
        switch_ports=ovsview.read_ports(flows[0].bridge) if flows else frozenset(),
        flows=tuple(
            (each.table, each.match) for step in flows for each in ovsview.read_flows(step.bridge, step.job_id)
        ),
    )


def _devices(namespace: str | None) -> dict[str, Device]:
    def read() -> dict[str, Device]:
        with netlink.opened("list devices") as links:
            found, held = links.all(), links.held()
        masters = {link.index: link.name for link in found}
        return {
            link.name: Device(
                link.up,
                link.mtu,
                masters.get(link.master) if link.master else None,
                link.vni,
                frozenset(held.get(link.index, ())),
            )
            for link in found
        }

    return netns.run_inside(namespace, read)
