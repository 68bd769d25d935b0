# SPDX-License-Identifier: Apache-2.0
"""Ports on bridges that are the site's own: Linux bridges by netlink, Open vSwitch by one ovs-vsctl(8)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pvc import run
from pvc.errors import HostError
from pvc.files import read_text
from pvc.host import leads, linkbatch, netlink, ovs, packetsockets, sysctl
from pvc.model.host import BridgeKind, HostBridge
from pvc.plan import actions
from pvc.plan.bridged import vlan_columns, vlan_ports

_VSCTL = ("ovs-vsctl", "--timeout=10")
_OWNER = "external_ids:pvc=1"
_NET_ADDR_SET = "3"  # linux/netdevice.h


def read_bridge(name: str) -> HostBridge | None:
    """The bridge of that name on this node, if there is one.

    :raise HostError: the kernel does not answer.
    """
    with netlink.opened(f"look for bridge {name}") as links:
        link = links.find(name)
        if link is not None and link.kind == "bridge":
            return HostBridge(BridgeKind.LINUX, link.mtu, links.filters_vlans(name), steady=_is_steady(link, links))
    try:
        # The empty line of a bridge that is not there differs from the quotes of one without a type.
        said = run.run([*_VSCTL, "--if-exists", "get", "Bridge", name, "datapath_type"]).strip()
    except HostError:
        return None
    if not said:
        return None
    datapath = "netdev" if said.strip('"') == "netdev" else "system"
    return HostBridge(BridgeKind.OVS, link.mtu if link is not None else 1500, True, datapath)


def _is_steady(bridge: netlink.Link, links: netlink.Links) -> bool:
    """Whether it was given a MAC, or a port of the site's whose MAC it prefers to those of ours.

    One that was given none has the lowest of its ports' (br_stp_recalculate_bridge_id). Those of Open vSwitch pass over
    locally administered ones, as ours are (ovs-vswitchd.conf.db(5), other_config:hwaddr).
    """
    given = read_text(Path(f"/sys/class/net/{bridge.name}/addr_assign_type"), default="")
    others = (each for each in links.all() if each.master == bridge.index)
    return given == _NET_ADDR_SET or any(each.address < leads.PORT_MAC for each in others)


def join(step: actions.JoinBridge) -> None:
    """Make ports of the bridge.

    :raise HostError: the kernel or Open vSwitch refuses.
    """
    switched = step.kind == BridgeKind.OVS.value
    for name in step.names:
        if sysctl.has(f"net/ipv6/conf/{name}"):
            # A port of a bridge has no address of its own that a VM could reach.
            sysctl.set_own(f"net/ipv6/conf/{name}/disable_ipv6", "1")
    if switched:
        linkbatch.put_up(step.names, mtu=step.mtu)
        _add_ports(step)
        return
    with netlink.opened(f"join ports to {step.bridge}") as links:
        links.enslave(step.names, step.bridge, step.mtu)
        if step.vlans:
            links.set_vlans(step.names, vlan_ports(step.vlans))


def leave(step: actions.JoinBridge) -> None:
    """Take the ports away, and their devices. Absent is fine.

    :raise HostError: the kernel or Open vSwitch refuses.
    """
    if step.kind == BridgeKind.OVS.value:
        with packetsockets.held(ovs.find_process() if step.datapath == "netdev" else None, step.names):
            _run(ovs.removal_words(step.names), step.bridge)
    with netlink.opened(f"remove ports from {step.bridge}") as links:
        for name in step.names:
            links.remove(name)


def _add_ports(step: actions.JoinBridge) -> None:
    words: list[str] = []
    for name in step.names:
        words += ["--", "--may-exist", "add-port", step.bridge, name]
        words += ["--", "set", "Port", name, *vlan_columns(step.vlans), _OWNER]
    _run(words, step.bridge)


def _run(words: Sequence[str], bridge: str) -> None:
    try:
        run.run([*_VSCTL, *words])
    except HostError as err:
        raise HostError(
            f"cannot change ports of Open vSwitch bridge {bridge}", hint="is ovs-vswitchd running?"
        ) from err
