# SPDX-License-Identifier: Apache-2.0
"""Ways from taps in a cluster's namespace to devices of the node's own, which a bridge of the site's has as ports."""

from __future__ import annotations

from pvc.host import linkbatch, netlink, netns, tap
from pvc.plan import actions

# Of every port: a bridge of the site's that has another port prefers that one's, and one port more is nothing new.
PORT_MAC = "fe:70:76:63:00:00"


def ensure(step: actions.AddLeads) -> None:
    """Make the taps and the pairs; the ports are left down.

    :raise HostError: no /dev/net/tun, or the kernel refused.
    """
    with netlink.target(step.netns) as fd, netlink.opened("make ports of VMs") as links:
        for lead in step.leads:
            peer = {"ifname": lead.end, "mtu": step.mtu, "net_ns_fd": fd}
            links.add(lead.port, "veth", mtu=step.mtu, address=PORT_MAC, peer=peer)

    def make() -> None:
        for lead in step.leads:
            tap.ensure(lead.tap, vnet_header=step.vnet_header)
        linkbatch.put_up([name for lead in step.leads for name in (lead.tap, lead.end)], mtu=step.mtu)

    netns.run_inside(step.netns, make)


def remove(step: actions.AddLeads) -> None:
    """Delete the pairs; the taps go with their namespace. Absent is fine.

    :raise HostError: the kernel refused.
    """
    with netlink.opened("remove ports of VMs") as links:
        for lead in step.leads:
            links.remove(lead.port)
