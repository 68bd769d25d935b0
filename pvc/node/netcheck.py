"""Comparing this node with what was planned for a job: reads what there is; the judgement is plan.diagnosis."""

from __future__ import annotations

from pathlib import Path

from pvc.host import dnsmasq, netlink, netns, nft, ovsview, portprogs, sysctl, vfio
from pvc.host.entries import read_tunnels
from pvc.model.netview import CheckReport
from pvc.node.netview import read_inputs
from pvc.plan import actions
from pvc.plan.diagnosis import Device, Seen, diagnose, programmed
from pvc.plan.node import NodePlan
from pvc.state.ledger import Ledger


def check(ledger: Ledger) -> CheckReport:
    """What of a job's networks is not as it was set up.

    :raise HostError: the plan is not known, or the node cannot be read.
    """
    inputs = read_inputs(ledger)
    plan = inputs.plan()
    return CheckReport(inputs.job.node, diagnose(inputs, plan.actions, observe(plan)), len(plan.actions))


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
    keys = [step.key for step in plan.actions if isinstance(step, actions.SetSysctl)]
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
            found = links.all()
        masters = {link.index: link.name for link in found}
        return {
            link.name: Device(link.up, link.mtu, masters.get(link.master) if link.master else None, link.vni)
            for link in found
        }

    return netns.run_inside(namespace, read)
