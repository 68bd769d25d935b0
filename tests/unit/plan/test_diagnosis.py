# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace

from pvc.model.host import Grants
from pvc.plan import actions
from pvc.plan.addresses import label_mac
from pvc.plan.diagnosis import Device, Seen, count_rules, diagnose
from pvc.plan.inputs import Inputs, collect
from tests.unit.plan.worlds import SITE, facts_of, job_of, request_of


def inputs_of() -> Inputs:
    job, request = job_of(40, 4), request_of(("nat", 80), cpus=2)
    return collect(job, request, SITE, facts_of(job), Grants({"nat": 5001}, 0, (60000, 60001)))


def as_planned(inputs: Inputs) -> Seen:
    """A node where everything is as the plan says."""
    seen = Seen(
        frozenset({"pvc-12"}),
        {(None, "eth0"): Device(True, 9000)},
        {},
        frozenset(),
        {},
        frozenset({"/run/pvc/net/12"}),
        {},
    )
    for step in inputs.plan().actions:
        match step:
            case actions.AddBridge() | actions.AddVxlan():
                master = step.bridge if isinstance(step, actions.AddVxlan) else None
                vni = step.vni if isinstance(step, actions.AddVxlan) else None
                made = {(step.netns, step.name): Device(True, step.mtu, master, vni)}
                seen = replace(seen, devices={**seen.devices, **made})
            case actions.AddTaps():
                taps = {(step.netns, name): Device(True, step.mtu, step.bridge) for name in step.names}
                seen = replace(seen, devices={**seen.devices, **taps})
            case actions.AddUplink():
                pair = {
                    (None, step.host_device): Device(True, 1500, addresses=frozenset({f"{step.host_address}/30"})),
                    (step.netns, "up0"): Device(True, 1500, addresses=frozenset({f"{step.netns_address}/30"})),
                }
                seen = replace(seen, devices={**seen.devices, **pair})
            case actions.LoadRules():
                counts = {(step.netns, *table): count for table, count in count_rules(step.text).items()}
                seen = replace(seen, rules={**seen.rules, **counts})
            case actions.AddPeers():
                labels = {label_mac(label): {peer.node} for label, peer in enumerate(step.peers)}
                to_all = {"00:00:00:00:00:00": {peer.node for peer in step.peers}}
                seen = replace(seen, tunnels={step.vxlan: {**to_all, **labels}})
            case actions.AddPrograms():
                seen = replace(seen, guarded=frozenset({"vx0", *(port.name for port in step.ports)}))
    return seen


def said(inputs: Inputs, seen: Seen) -> list[str]:
    return [fault.text for fault in diagnose(inputs, inputs.plan().actions, seen)]


def test_a_node_as_planned_has_no_fault() -> None:
    inputs = inputs_of()
    assert said(inputs, as_planned(inputs)) == []


def test_missing_entries_are_told_by_the_vms_behind_them() -> None:
    inputs = inputs_of()
    texts = said(inputs, replace(as_planned(inputs), tunnels={}))
    nodes = "10.99.0.2, 10.99.0.3, 10.99.0.4, 10.99.0.5 and 35 more"
    assert texts == [
        *(f"no forwarding entry for vm[{first}-{first + 1}] on network nat" for first in range(2, 80, 2)),
        f"no entry that leads multicast and broadcast of network nat to {nodes}",
    ]


def test_an_entry_that_leads_elsewhere_is_told() -> None:
    inputs = inputs_of()
    seen = as_planned(inputs)
    moved = {"vx0": {**seen.tunnels["vx0"], label_mac(2): {"10.99.0.77"}}}
    assert said(inputs, replace(seen, tunnels=moved)) == [
        "frames for vm[6-7] on network nat are sent to 10.99.0.77 instead of 10.99.0.4"
    ]


def test_ports_without_their_program_are_told() -> None:
    inputs = inputs_of()
    texts = said(inputs, replace(as_planned(inputs), guarded=frozenset({"t0n0"})))
    assert texts == ["nothing guards or forwards what t1n0, vx0 of network nat brings"]


def test_a_vni_that_differs_is_told() -> None:
    inputs = inputs_of()
    seen = as_planned(inputs)
    changed = {**seen.devices, ("pvc-12", "vx0"): Device(True, 1500, "br0", 7)}
    assert said(inputs, replace(seen, devices=changed)) == ["the tunnel of network nat has VNI 7 instead of 5001"]


def test_behind_a_missing_namespace_nothing_more_is_said() -> None:
    inputs = inputs_of()
    nothing = Seen(frozenset(), {}, {}, frozenset(), {}, frozenset(), {})
    assert said(inputs, nothing) == ["the cluster's network namespace pvc-12 is gone"]


def test_settings_that_were_changed_are_told() -> None:
    inputs = inputs_of()
    seen = replace(as_planned(inputs), settings={"net/ipv4/conf/eth0/forwarding": "0"})
    assert said(inputs, seen) == ["net/ipv4/conf/eth0/forwarding is 0 instead of 1"]


def test_rules_are_counted() -> None:
    text = "table ip a {\n  chain x {\n    type filter hook input priority 0;\n    policy drop;\n    accept\n"
    text += "    drop\n  }\n"
    text += "  map m {\n    type a : b\n    elements = { 1 : 2 }\n  }\n  chain y {\n    return\n  }\n}\n"
    assert count_rules(text + "table ip6 b {\n}\n") == {("ip", "a"): 3, ("ip6", "b"): 0}


def test_a_device_that_was_taken_from_its_vm_is_told() -> None:
    inputs = inputs_of()
    step = actions.BindDevice("0000:3b:00.0", 12, "nouveau", 1000, 1000)
    seen = replace(as_planned(inputs), drivers={"0000:3b:00.0": "vfio-pci"})
    assert diagnose(inputs, [step], seen) == ()
    (fault,) = diagnose(inputs, [step], replace(seen, drivers={"0000:3b:00.0": "nouveau"}))
    assert fault.text == "device 0000:3b:00.0 is at driver nouveau, not at vfio-pci"
