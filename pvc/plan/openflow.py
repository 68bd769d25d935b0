# SPDX-License-Identifier: Apache-2.0
"""OpenFlow tables of a cluster's networks on a node's shared switch: text for ``ovs-ofctl bundle``, and meters.

Everything is known beforehand, so nothing is learnt and nothing known is flooded:

    CLASSIFY  0  which network a frame belongs to, and whether its sender may say what it says
    SIX       1  IPv6 of VMs on L3 networks: what is for the gateway alone, and what no VM may send
    ANSWER    2  ARP requests and neighbour solicitations are answered here, for all VMs of the cluster
    NAME6     3  neighbour advertisements get the address that was asked for
    SWITCH    4  frames of this node's VMs and gateway: to a port, or through the tunnel to the node that has the VM
    DELIVER   5  frames out of the tunnel: to ports of this node only, so nothing goes round in circles

``metadata`` is the network's VNI, the cookie is the job. Ports are named; ``ovs-ofctl`` knows their numbers.

Flows for other nodes' VMs are for blocks of them: the numbers of a node's VMs follow each other, so a few masks say
which they are, and an answer is made of the question, for a MAC ends with the same bits as the addresses.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from pvc.plan import addresses, members
from pvc.plan.members import Numbering, Peer, Ranks

CLASSIFY, SIX, ANSWER, NAME6, SWITCH, DELIVER = range(6)
_MULTICAST = "dl_dst=01:00:00:00:00:00/01:00:00:00:00:00"
_LINK_LOCAL = "fe80::/64"
_LOCAL_GROUP = 1 << 24  # above all VNIs
# A message of OpenFlow has at most 64 KiB, and a way to another node takes some 100 bytes of a group: 16 x 500 nodes.
_PARTS, _PART_NODES = tuple(number << 24 for number in range(2, 18)), 500
_RS, _RA, _NS, _NA, _REDIRECT = 133, 134, 135, 136, 137
# Extension headers that Open vSwitch takes for what they carry: mobility, HIP, Shim6, and those for experiments.
_OPAQUE = (135, 139, 140, 253, 254)


@dataclass(frozen=True)
class Port:
    """A port of the switch on this node and whose it is; ``meters`` limit what comes in and what goes out."""

    name: str
    mac: str
    address: str | None = None
    address6: str | None = None
    meters: tuple[int, int] | None = None


@dataclass(frozen=True)
class Segment:
    """One network of a cluster on this node.

    ``members`` are the ranks of all VMs on it, here and elsewhere. L3 networks have a ``gateway``, L2 networks none.
    ``tunnel`` is the port that leads to all other nodes.
    """

    cookie: int
    vni: int
    ports: tuple[Port, ...]
    gateway: Port | None
    numbering: Numbering
    members: Ranks
    peers: tuple[Peer, ...]
    local_address: str
    tunnel: str


def render(segments: Sequence[Segment]) -> str:
    """What replaces all flows and groups of a job, one command a line."""
    cookie = segments[0].cookie
    lines = [f"flow delete cookie={cookie:#x}/-1"]
    for segment in segments:
        lines += _groups(segment)
    for segment in segments:
        for table, priority, match, acts in _flows(segment):
            lines.append(
                f"flow add cookie={cookie:#x},table={table},priority={priority},{match},actions={acts or 'drop'}"
            )
    return "\n".join(lines) + "\n"


def render_removal(cookie: int, vnis: Sequence[int]) -> str:
    """What removes them."""
    kinds = (0, _LOCAL_GROUP, *_PARTS)
    groups = [f"group delete group_id={vni + kind}" for vni in vnis for kind in kinds]
    return "\n".join([f"flow delete cookie={cookie:#x}/-1", *groups]) + "\n"


Flow = tuple[int, int, str, str]


def _groups(segment: Segment) -> Iterator[str]:
    local = [f"bucket=actions={_out(port)}" for port in segment.ports]
    others = [f"bucket=actions={_tunnel(segment, peer.node)}" for peer in segment.peers]
    if len(others) > _PART_NODES:
        starts = range(0, len(others), _PART_NODES)
        for kind, start in zip(_PARTS, starts, strict=False):
            yield from _group(segment.vni + kind, others[start : start + _PART_NODES])
        others = [f"bucket=actions=group:{segment.vni + kind}" for kind, _ in zip(_PARTS, starts, strict=False)]
    yield from _group(segment.vni, [*local, *others])
    yield from _group(segment.vni + _LOCAL_GROUP, local)


def _group(number: int, buckets: Sequence[str]) -> Iterator[str]:
    yield f"group delete group_id={number}"
    yield f"group add group_id={number},type=all,{','.join(buckets)}"


def _flows(segment: Segment) -> Iterator[Flow]:
    for port in segment.ports:
        yield from _classify_vm(segment, port) if segment.gateway is not None else _classify_any(segment, port)
    yield from _classify_tunnel(segment)
    if segment.gateway is not None:
        yield from _classify_gateway(segment, segment.gateway)
        yield from _answer_arp(segment, segment.gateway)
        if segment.gateway.address6 is not None:
            yield from _sort_six(segment, segment.gateway)
            yield from _answer_six(segment, segment.gateway)
    yield from _switch(segment)
    yield from _deliver(segment)


def _classify_any(segment: Segment, port: Port) -> Iterator[Flow]:
    yield CLASSIFY, 50, f'in_port="{port.name}"', f"{_metered(port)}{_enter(segment, SWITCH)}"


def _classify_vm(segment: Segment, port: Port) -> Iterator[Flow]:
    gateway = segment.gateway
    assert gateway is not None
    source, own = f'in_port="{port.name}"', f'in_port="{port.name}",dl_src={port.mac}'
    meter = _metered(port)
    yield CLASSIFY, 99, f"{source},vlan_tci=0x1000/0x1000", ""
    # RFC 5227: who asks for the address that it has itself wants to hear from others that have it. There are none.
    yield CLASSIFY, 95, f"{source},arp,arp_tpa={port.address}", ""
    asks = f"{own},arp,arp_op=1,arp_sha={port.mac},arp_spa={port.address}"
    yield CLASSIFY, 90, asks, f"{meter}{_enter(segment, ANSWER)}"
    # Clients take an answer of DHCP from any port. A datagram, or its first fragment, is to show its ports.
    for ports in ("tp_src=67", "tp_dst=68", "tp_src=0,tp_dst=0,ip_frag=not_later"):
        yield CLASSIFY, 95, f"{source},udp,{ports}", ""
    for address in ("0.0.0.0", port.address):
        lease = f"{own},udp,nw_src={address},nw_dst=255.255.255.255,tp_src=68,tp_dst=67"
        yield CLASSIFY, 92, lease, f"{meter}{_out(gateway)}"
    yield CLASSIFY, 90, f"{own},ip,nw_src={port.address}", f"{meter}{_enter(segment, SWITCH)}"
    if port.address6 is None:
        return
    # Link-local addresses are the guest's own choice (RFC 7217), but those made of MACs are their owners'.
    mine, made = addresses.link_local(port.mac), _made_of_macs(port.mac)
    enter = f"{meter}{_enter(segment, SIX)}"
    yield CLASSIFY, 97, f"{source},icmp6,icmp_type={_NA},nd_target={mine},dl_src={port.mac},ipv6_src={mine}", enter
    yield CLASSIFY, 96, f"{source},icmp6,icmp_type={_NA},nd_target={made}", ""
    yield CLASSIFY, 95, f"{own},ipv6,ipv6_src={mine}", enter
    yield CLASSIFY, 94, f"{source},ipv6,ipv6_src={made}", ""
    yield CLASSIFY, 90, f"{own},ipv6,ipv6_src={_LINK_LOCAL}", enter
    yield CLASSIFY, 90, f"{own},ipv6,ipv6_src={port.address6}", enter
    yield CLASSIFY, 90, f"{own},icmp6,ipv6_src=::,icmp_type={_RS}", f"{meter}{_out(gateway)}"


def _classify_gateway(segment: Segment, gateway: Port) -> Iterator[Flow]:
    own = f'in_port="{gateway.name}",dl_src={gateway.mac}'
    yield CLASSIFY, 90, f"{own},arp", _enter(segment, ANSWER)
    yield CLASSIFY, 90, f"{own},icmp6,icmp_type={_NS}", _enter(segment, ANSWER)
    # Each node is the gateway of its own VMs: what it announces stays here.
    yield CLASSIFY, 80, f"{own},{_MULTICAST}", f"group:{segment.vni + _LOCAL_GROUP}"
    yield CLASSIFY, 50, own, _enter(segment, SWITCH)


def _classify_tunnel(segment: Segment) -> Iterator[Flow]:
    for peer in segment.peers:
        match = f'in_port="{segment.tunnel}",tun_id={segment.vni},tun_src={peer.node},tun_dst={segment.local_address}'
        yield CLASSIFY, 50, match, _enter(segment, DELIVER)


def _sort_six(segment: Segment, gateway: Port) -> Iterator[Flow]:
    network, to_gateway = f"metadata={segment.vni}", _out(gateway)
    for kind in (_RA, _REDIRECT):
        yield SIX, 110, f"{network},icmp6,icmp_type={kind}", ""
    for ports in ("tp_src=547", "tp_dst=546", "tp_src=0,tp_dst=0,ip_frag=not_later"):
        yield SIX, 110, f"{network},udp6,{ports}", ""
    # RFC 6980: discovery does not come in fragments. RFC 7112: the first one shows what it is the beginning of; where
    # it does not, headers that Open vSwitch cannot follow to their end have the protocol 0.
    for kind in (_RS, _NS, _NA):
        yield SIX, 110, f"{network},icmp6,icmp_type={kind},ip_frag=yes", ""
    yield SIX, 110, f"{network},icmp6,icmp_type=0,ip_frag=not_later", ""
    for number in (0, *_OPAQUE):
        yield SIX, 110, f"{network},ipv6,nw_proto={number}", ""
    yield SIX, 100, f"{network},icmp6,icmp_type={_RS}", to_gateway
    yield SIX, 100, f"{network},icmp6,icmp_type={_NS}", f"goto_table:{ANSWER}"
    for port in segment.ports:
        # Who asks says its own MAC, or none: what the answer, or the gateway, would believe.
        asks = f'{network},icmp6,icmp_type={_NS},in_port="{port.name}"'
        for hardware in (port.mac, "00:00:00:00:00:00"):
            yield SIX, 102, f"{asks},nd_sll={hardware}", f"goto_table:{ANSWER}"
        yield SIX, 101, asks, ""
    # A gateway that answers a link-local address asks for its MAC first; all else is answered in the switch.
    told = f"{network},icmp6,icmp_type={_NA},nd_target={_LINK_LOCAL},ipv6_src={_LINK_LOCAL},dl_dst={gateway.mac}"
    for port in segment.ports:
        # With its own MAC, or without any: the gateway believes it.
        for hardware in (port.mac, "00:00:00:00:00:00"):
            yield SIX, 100, f'{told},in_port="{port.name}",nd_tll={hardware}', to_gateway
    yield SIX, 99, f"{network},icmp6,icmp_type={_NA}", ""
    yield SIX, 98, f"{network},udp6,ipv6_src={_LINK_LOCAL},tp_src=546,tp_dst=547", to_gateway
    yield SIX, 97, f"{network},ipv6,ipv6_src={_LINK_LOCAL},dl_dst={gateway.mac}", to_gateway
    yield SIX, 96, f"{network},ipv6,ipv6_src={_LINK_LOCAL}", ""
    yield SIX, 10, network, f"goto_table:{SWITCH}"


@dataclass(frozen=True)
class _Owners:
    """Those who share all but the last ``bits`` of their MACs and of their addresses, which are equal in each."""

    mac: str
    address: str | None
    address6: str | None
    bits: int = 0

    def match(self) -> str:
        """Their IPv4 addresses."""
        return f"{self.address}/{32 - self.bits}" if self.bits else f"{self.address}"

    def match6(self) -> str:
        """Their IPv6 addresses."""
        return f"{self.address6}/{128 - self.bits}" if self.bits else f"{self.address6}"

    def set_mac(self, name: str, field: str, asked: str) -> str:
        """Write the MAC of the one whose address is in the field ``asked``."""
        rest = f",move:{asked}[0..{self.bits - 1}]->{field}[0..{self.bits - 1}]" if self.bits else ""
        return f"set_field:{self.mac}->{name}{rest}"


def _owners(segment: Segment, gateway: Port) -> Iterator[_Owners]:
    yield _Owners(gateway.mac, gateway.address, gateway.address6)
    first = segment.numbering
    assert first.address is not None
    base, base6 = int(IPv4Address(first.address)), int(IPv6Address(first.address6)) if first.address6 else None
    # A network begins where as many bits are zero as its VMs need, so IPv4 and IPv6 addresses have the same last bits.
    number = members.mac_number(first.mac)
    most = members.common_bits(number, base)
    for begin, end in segment.members:
        for block in members.split(base + begin, base + end, most):
            rank = block.first - base
            six = str(IPv6Address(base6 + rank)) if base6 is not None else None
            mac = members.with_number(first.mac, number + rank)
            yield _Owners(mac, members.dotted(block.first), six, block.bits)


def _answer_arp(segment: Segment, gateway: Port) -> Iterator[Flow]:
    network = f"metadata={segment.vni},arp,arp_op=1"
    for owners in _owners(segment, gateway):
        reply = (
            "move:NXM_OF_ETH_SRC[]->NXM_OF_ETH_DST[],move:NXM_NX_ARP_SHA[]->NXM_NX_ARP_THA[],set_field:2->arp_op,"
            f"{owners.set_mac('eth_src', 'NXM_OF_ETH_SRC', 'NXM_OF_ARP_TPA')},"
            f"{owners.set_mac('arp_sha', 'NXM_NX_ARP_SHA', 'NXM_OF_ARP_TPA')},"
            "move:NXM_OF_ARP_TPA[]->NXM_NX_REG0[],move:NXM_OF_ARP_SPA[]->NXM_OF_ARP_TPA[],"
            "move:NXM_NX_REG0[]->NXM_OF_ARP_SPA[],in_port"
        )
        yield ANSWER, 50, f"{network},arp_tpa={owners.match()}", reply


def _answer_six(segment: Segment, gateway: Port) -> Iterator[Flow]:
    """Two tables: only a neighbour advertisement has a target's link-layer address to be set."""
    network = f"metadata={segment.vni},icmp6"
    turn = (
        "move:NXM_OF_ETH_SRC[]->NXM_OF_ETH_DST[],move:NXM_NX_IPV6_SRC[]->NXM_NX_IPV6_DST[],"
        f"set_field:{_NA}->icmpv6_type,set_field:2->nd_options_type,set_field:{{flags}}->nd_reserved,"
        f"goto_table:{NAME6}"
    )
    # Flags (RFC 4861, 4.4): solicited and override; the gateway is a router, too.
    assert gateway.address6 is not None
    gateways = (gateway.address6, addresses.link_local(gateway.mac))
    for address in gateways:
        match = f"{network},icmp_type={_NS},icmp_code=0,nd_options_type=1,nd_target={address}"
        yield ANSWER, 60, match, turn.format(flags="0xe0000000")
    prefix = f"{IPv6Address(int(IPv6Address(gateway.address6)) >> 64 << 64)}/64"
    match = f"{network},icmp_type={_NS},icmp_code=0,nd_options_type=1,nd_target={prefix}"
    yield ANSWER, 50, match, turn.format(flags="0x60000000")
    # Whoever the gateway looks for beyond those is a VM of this node that it knows by its link-local address.
    yield ANSWER, 40, f'{network},in_port="{gateway.name}",icmp_type={_NS}', f"group:{segment.vni + _LOCAL_GROUP}"
    match = f"{network},icmp_type={_NA},icmp_code=0,nd_target="
    for owners in (*_owners(segment, gateway), _Owners(gateway.mac, None, gateways[1])):
        if owners.address6 is not None:
            name = (
                "move:NXM_NX_ND_TARGET[]->NXM_NX_IPV6_SRC[],"
                f"{owners.set_mac('eth_src', 'NXM_OF_ETH_SRC', 'NXM_NX_ND_TARGET')},"
                f"{owners.set_mac('nd_tll', 'NXM_NX_ND_TLL', 'NXM_NX_ND_TARGET')},in_port"
            )
            yield NAME6, 50, match + owners.match6(), name


def _switch(segment: Segment) -> Iterator[Flow]:
    network = f"metadata={segment.vni}"
    for port in (*segment.ports, *([segment.gateway] if segment.gateway else [])):
        yield SWITCH, 50, f"{network},dl_dst={port.mac}", _out(port)
    for peer in segment.peers:
        way = _tunnel(segment, peer.node)
        for block in members.split_macs(segment.numbering.mac, peer.ranks):
            yield SWITCH, 50, f"{network},dl_dst={_masked(segment.numbering.mac, block)}", way
    yield SWITCH, 40, f"{network},{_MULTICAST}", f"group:{segment.vni}"
    if segment.gateway is None:
        yield SWITCH, 10, network, f"group:{segment.vni}"


def _deliver(segment: Segment) -> Iterator[Flow]:
    network = f"metadata={segment.vni}"
    for port in segment.ports:
        yield DELIVER, 50, f"{network},dl_dst={port.mac}", _out(port)
    yield DELIVER, 40, f"{network},{_MULTICAST}", f"group:{segment.vni + _LOCAL_GROUP}"
    if segment.gateway is None:
        yield DELIVER, 10, network, f"group:{segment.vni + _LOCAL_GROUP}"


def _masked(mac: str, block: members.Block) -> str:
    first = members.with_number(mac, block.first)
    return f"{first}/{members.with_number('ff:ff:ff:ff:', 0xFFFF << block.bits)}" if block.bits else first


def _enter(segment: Segment, table: int) -> str:
    return f"set_field:{segment.vni}->metadata,goto_table:{table}"


def _metered(port: Port) -> str:
    return f"meter:{port.meters[0]}," if port.meters is not None else ""


def _out(port: Port) -> str:
    return (f"meter:{port.meters[1]}," if port.meters is not None else "") + f'output:"{port.name}"'


def _tunnel(segment: Segment, node: str) -> str:
    return (
        f"set_field:{segment.vni}->tun_id,set_field:{segment.local_address}->tun_src,set_field:{node}->tun_dst,"
        f'output:"{segment.tunnel}"'
    )


def _made_of_macs(mac: str) -> str:
    """The link-local addresses that come of MACs of this network's prefix, as a value and a mask."""
    base = int(IPv6Address(addresses.link_local(mac))) >> 24 << 24
    return f"{IPv6Address(base)}/{IPv6Address((1 << 128) - (1 << 24))}"
