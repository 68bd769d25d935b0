"""OpenFlow tables of a cluster's networks on a node's shared switch: text for ``ovs-ofctl bundle``, and meters.

Everything is known beforehand, so nothing is learnt and nothing known is flooded:

    CLASSIFY  0  which network a frame belongs to, and whether its sender may say what it says
    SIX       1  IPv6 of VMs on L3 networks: what is for the gateway alone, and what no VM may send
    ANSWER    2  ARP requests and neighbour solicitations are answered here, for all VMs of the cluster
    NAME6     3  neighbour advertisements get the address that was asked for
    SWITCH    4  frames of this node's VMs and gateway: to a port, or through the tunnel to the node that has the VM
    DELIVER   5  frames out of the tunnel: to ports of this node only, so nothing goes round in circles

``metadata`` is the network's VNI, the cookie is the job. Ports are named; ``ovs-ofctl`` knows their numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address

from pvc.plan import addresses

CLASSIFY, SIX, ANSWER, NAME6, SWITCH, DELIVER = range(6)
_MULTICAST = "dl_dst=01:00:00:00:00:00/01:00:00:00:00:00"
_LINK_LOCAL = "fe80::/64"
_LOCAL_GROUP = 1 << 24  # above all VNIs
# A message of OpenFlow has at most 64 KiB, and a way to another node takes some 100 bytes of a group: 16 x 500 nodes.
_PARTS, _PART_NODES = tuple(number << 24 for number in range(2, 18)), 500
_RS, _RA, _NS, _NA, _REDIRECT = 133, 134, 135, 136, 137


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

    ``remote`` are the VMs of other nodes: MAC, IPv4 and IPv6 address (None: no such), address of their node. L3
    networks have a ``gateway``, L2 networks none. ``tunnel`` is the port that leads to all other nodes.
    """

    cookie: int
    vni: int
    ports: tuple[Port, ...]
    gateway: Port | None
    remote: tuple[tuple[str, str | None, str | None, str], ...]
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
    others = [f"bucket=actions={_tunnel(segment, node)}" for node in dict.fromkeys(each[3] for each in segment.remote)]
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
    yield CLASSIFY, 95, f"{source},udp,tp_src=67", ""
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
    for node in dict.fromkeys(each[3] for each in segment.remote):
        match = f'in_port="{segment.tunnel}",tun_id={segment.vni},tun_src={node},tun_dst={segment.local_address}'
        yield CLASSIFY, 50, match, _enter(segment, DELIVER)


def _sort_six(segment: Segment, gateway: Port) -> Iterator[Flow]:
    network, to_gateway = f"metadata={segment.vni}", _out(gateway)
    for kind in (_RA, _REDIRECT):
        yield SIX, 110, f"{network},icmp6,icmp_type={kind}", ""
    yield SIX, 110, f"{network},udp6,tp_src=547", ""
    yield SIX, 100, f"{network},icmp6,icmp_type={_RS}", to_gateway
    yield SIX, 100, f"{network},icmp6,icmp_type={_NS}", f"goto_table:{ANSWER}"
    # A gateway that answers a link-local address asks for its MAC first; all else is answered in the switch.
    told = f"{network},icmp6,icmp_type={_NA},nd_target={_LINK_LOCAL},ipv6_src={_LINK_LOCAL},dl_dst={gateway.mac}"
    yield SIX, 100, told, to_gateway
    yield SIX, 99, f"{network},icmp6,icmp_type={_NA}", ""
    yield SIX, 98, f"{network},udp6,ipv6_src={_LINK_LOCAL},tp_src=546,tp_dst=547", to_gateway
    yield SIX, 97, f"{network},ipv6,ipv6_src={_LINK_LOCAL},dl_dst={gateway.mac}", to_gateway
    yield SIX, 96, f"{network},ipv6,ipv6_src={_LINK_LOCAL}", ""
    yield SIX, 10, network, f"goto_table:{SWITCH}"


def _answer_arp(segment: Segment, gateway: Port) -> Iterator[Flow]:
    reply = (
        "move:NXM_OF_ETH_SRC[]->NXM_OF_ETH_DST[],set_field:{mac}->eth_src,set_field:2->arp_op,"
        "move:NXM_NX_ARP_SHA[]->NXM_NX_ARP_THA[],move:NXM_OF_ARP_SPA[]->NXM_OF_ARP_TPA[],"
        "set_field:{mac}->arp_sha,set_field:{address}->arp_spa,in_port"
    )
    match = f"metadata={segment.vni},arp,arp_op=1,arp_tpa="
    for mac, address, _ in _members(segment, gateway):
        if address is not None:
            yield ANSWER, 50, match + address, reply.format(mac=mac, address=address)


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
    name = "set_field:{address}->ipv6_src,set_field:{mac}->eth_src,set_field:{mac}->nd_tll,in_port"
    match = f"{network},icmp_type={_NA},icmp_code=0,nd_target="
    for mac, _, address6 in _members(segment, gateway):
        if address6 is not None:
            yield NAME6, 50, match + address6, name.format(mac=mac, address=address6)
    yield NAME6, 50, match + gateways[1], name.format(mac=gateway.mac, address=gateways[1])


def _switch(segment: Segment) -> Iterator[Flow]:
    network = f"metadata={segment.vni}"
    for port in (*segment.ports, *([segment.gateway] if segment.gateway else [])):
        yield SWITCH, 50, f"{network},dl_dst={port.mac}", _out(port)
    ways = {node: _tunnel(segment, node) for node in dict.fromkeys(each[3] for each in segment.remote)}
    for mac, _, _, node in segment.remote:
        yield SWITCH, 50, f"{network},dl_dst={mac}", ways[node]
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


def _members(segment: Segment, gateway: Port) -> Iterator[tuple[str, str | None, str | None]]:
    for port in (*segment.ports, gateway):
        yield port.mac, port.address, port.address6
    for mac, address, address6, _ in segment.remote:
        yield mac, address, address6


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
