# SPDX-License-Identifier: Apache-2.0
"""Networks of the site's own: VMs as ports of a bridge that a node has, which may say what is theirs and no more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pvc.errors import ConfigError, Problem, UsageError
from pvc.model.cluster import NodeShare
from pvc.model.host import BridgeKind, HostBridge, NodeFacts
from pvc.model.network import BridgedNetwork, Tagging
from pvc.model.node import Nic, Tap
from pvc.plan import actions, names

MAX_INDEX = 15
_JOB_BITS, _INDEX_BITS, _RANK_BITS = 26, 4, 16
TABLE = "pvc"
_OF_BRIDGES = "01:80:c2:00:00:00"  # to 0f: spanning tree, pauses, link aggregation, port access (IEEE 802.1Q, 8.6.3)
_LOCAL = 0x02  # of a MAC's first byte: locally administered (IEEE 802c), and no group


@dataclass(frozen=True)
class Attachment:
    """One network of the site's: its number among those of the cluster, and the ranks on it."""

    index: int
    network: BridgedNetwork
    members: tuple[range, ...]

    def ranks_of(self, share: NodeShare) -> list[int]:
        """The members that a node runs."""
        first, end = share.first_rank, share.first_rank + share.count
        return [rank for ranks in self.members for rank in range(max(first, ranks.start), min(end, ranks.stop))]


@dataclass(frozen=True)
class Bridged:
    """A node's share of all of them."""

    actions: tuple[actions.Action, ...]
    nics: tuple[tuple[int, Nic], ...]
    taps: tuple[Tap, ...]


def plan_bridged(
    job_id: int, attachments: Sequence[Attachment], share: NodeShare, facts: NodeFacts, first_tap: int
) -> Bridged:
    """Taps in the cluster's namespace, their ports, and what VMs are told; ``first_tap`` is the index of the first tap.

    :raise ConfigError: a bridge is not there, or is not fit for the network.
    """
    steps: list[actions.Action] = []
    nics: list[tuple[int, Nic]] = []
    taps: list[Tap] = []
    rules: list[str] = []
    netns = names.netns(job_id)
    for each in attachments:
        network, ranks = each.network, each.ranks_of(share)
        if not ranks:
            continue
        bridge = _check(network, facts)
        # A Linux bridge takes the smallest MTU of its ports for its own; the site's bridge must keep what it has.
        mtu = bridge.mtu
        ports = tuple(names.port(network.tap_prefix, names.job_mark(job_id), at) for at in range(len(ranks)))
        leads = tuple(
            actions.Lead(names.site_tap(rank, each.index), names.site_end(rank, each.index), port)
            for rank, port in zip(ranks, ports, strict=True)
        )
        header = bridge.datapath != "netdev"
        vlans = tuple((vlan.vid, vlan.tagging.value) for vlan in network.vlans)
        steps.append(actions.AddLeads(netns, mtu, header, leads))
        steps.append(actions.JoinBridge(network.host_bridge, bridge.kind.value, bridge.datapath, mtu, ports, vlans))
        for rank, lead in zip(ranks, leads, strict=True):
            mac = vm_mac(job_id, each.index, rank)
            rules += _carry(lead, mac)
            nics.append((rank, Nic(network.name, mac, network.mtu, None, None, first_tap + len(taps), dhcp=True)))
            taps.append(Tap(lead.tap, netns, vnet_header=header))
    if rules:
        text = "\n".join([f"table netdev {TABLE} {{", *rules, "}", ""])
        steps.append(actions.LoadRules(netns, (("netdev", TABLE),), text))
    return Bridged(tuple(steps), tuple(nics), tuple(taps))


def _carry(lead: actions.Lead, mac: str) -> list[str]:
    """What a VM sends under its own MAC goes out, but for what bridges say to one another; all that comes goes in.

    A frame under another MAC would have the site's switches send to the VM what is for somebody else.
    """
    head = 'type filter hook ingress device "{}" priority 0;'
    return [
        f"  chain {lead.tap} {{",
        f"    {head.format(lead.tap)}",
        f"    ether saddr != {mac} drop",
        f"    ether daddr & ff:ff:ff:ff:ff:f0 == {_OF_BRIDGES} drop",
        f'    fwd to "{lead.end}"',
        "  }",
        f"  chain {lead.end} {{",
        f"    {head.format(lead.end)}",
        f'    fwd to "{lead.tap}"',
        "  }",
    ]


def vm_mac(job_id: int, index: int, rank: int) -> str:
    """The MAC of VM ``rank`` on the job's bridged network ``index``: no other of any job of this Slurm cluster has it.

    46 bits are free in a locally administered address: 26 for the job (Slurm's MaxJobId), 4 for the network, 16 for
    the rank.

    :raise UsageError: more than 16 bridged networks.
    """
    if index > MAX_INDEX:
        raise UsageError(f"a cluster can be on {MAX_INDEX + 1} bridged networks at most")
    number = (job_id & (1 << _JOB_BITS) - 1) << _INDEX_BITS + _RANK_BITS | index << _RANK_BITS | rank
    first = number >> 40 << 2 | _LOCAL
    return (first << 40 | number & (1 << 40) - 1).to_bytes(6, "big").hex(":")


def vlan_ports(vlans: Sequence[tuple[int, str]]) -> tuple[tuple[int, tuple[str, ...]], ...]:
    """(number, flags of bridge(8) "vlan add") of a Linux bridge's port."""
    whole = ("pvid", "untagged")
    return tuple((vid, () if how == Tagging.TAGGED.value else whole) for vid, how in vlans)


def vlan_columns(vlans: Sequence[tuple[int, str]]) -> tuple[str, ...]:
    """The same as columns of Open vSwitch's table Port (ovs-vswitchd.conf.db(5))."""
    if not vlans:
        return ()
    own = [vid for vid, how in vlans if how != Tagging.TAGGED.value]
    trunks = [str(vid) for vid, how in vlans if how == Tagging.TAGGED.value]
    if not trunks:
        return ("vlan_mode=access", f"tag={own[0]}")
    mode = ("vlan_mode=native-untagged", f"tag={own[0]}") if own else ("vlan_mode=trunk",)
    return (*mode, f"trunks={','.join([*map(str, own), *trunks])}")


def _check(network: BridgedNetwork, facts: NodeFacts) -> HostBridge:
    def refuse(key: str, text: str, hint: str | None = None) -> ConfigError:
        return ConfigError([Problem("networks.yaml", 0, f"{network.name}.settings.{key}", text)], hint=hint)

    bridge = facts.bridges.get(network.host_bridge)
    if bridge is None:
        raise refuse("host-bridge", f"this node has no bridge {network.host_bridge}, neither Linux' nor Open vSwitch's")
    if network.mtu > bridge.mtu:
        raise refuse("mtu", f"{network.mtu} is more than {network.host_bridge} carries ({bridge.mtu})")
    if not bridge.steady:
        text = f"{network.host_bridge} has no MAC of its own on this node and would take the first port's"
        hint = f"ip link set {network.host_bridge} address $(cat /sys/class/net/{network.host_bridge}/address)"
        raise refuse("host-bridge", text, f"{hint}, and the same where the bridge is made")
    if network.vlans and bridge.kind is BridgeKind.LINUX and not bridge.filters_vlans:
        hint = f"ip link set {network.host_bridge} type bridge vlan_filtering 1, or an Open vSwitch bridge"
        raise refuse("vlans", f"{network.host_bridge} does not tell VLANs from one another on this node", hint)
    return bridge
