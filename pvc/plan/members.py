# SPDX-License-Identifier: Apache-2.0
"""Members of a network as ranges of ranks, and what their addresses follow from.

A cluster has ten thousands of VMs and a node a few: whatever is said of the VMs of other nodes is said of ranges.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address

from pvc.model.network import EthernetNetwork, Layer
from pvc.plan import addresses

Ranks = tuple[tuple[int, int], ...]  # each from the first to before the second


@dataclass(frozen=True)
class Numbering:
    """The addresses of rank 0, to which a rank is added; those that a network does not give out are None.

    Of a MAC it is added to the last two bytes, and what does not fit there is dropped.
    """

    mac: str
    address: str | None
    address6: str | None


@dataclass(frozen=True)
class Peer:
    """Another node, by its address on the underlay, and the members that it runs."""

    node: str
    ranks: Ranks


@dataclass(frozen=True)
class Block:
    """Numbers whose upper bits are the same: 2 ** ``bits`` of them, the first of which has zeros below."""

    first: int
    bits: int


def numbering(network: EthernetNetwork, index: int, vni: int) -> Numbering:
    """That of the cluster's network ``index``."""
    mac = addresses.vm_mac(network, index, 0)
    if network.layer is not Layer.L3:
        return Numbering(mac, None, None)
    return Numbering(mac, addresses.vm_address(network, 0), addresses.vm_address6(network, 0, vni))


def split(first: int, end: int, most_bits: int) -> Iterator[Block]:
    """The numbers from ``first`` to before ``end`` as the fewest blocks of at most 2 ** ``most_bits`` numbers."""
    while first < end:
        bits = min(most_bits, (end - first).bit_length() - 1)
        if first:
            bits = min(bits, (first & -first).bit_length() - 1)
        yield Block(first, bits)
        first += 1 << bits


def mac_number(mac: str) -> int:
    """The last two bytes of a MAC."""
    return int(mac[12:].replace(":", ""), 16)


def with_number(mac: str, number: int) -> str:
    """A MAC with other last two bytes."""
    return f"{mac[:12]}{number >> 8 & 0xFF:02x}:{number & 0xFF:02x}"


def split_macs(first_mac: str, ranks: Ranks) -> Iterator[Block]:
    """The last two bytes of the MACs of ``ranks``."""
    for first, end in ranks:
        start = (mac_number(first_mac) + first) & 0xFFFF
        stop = start + end - first
        yield from split(start, min(stop, 0x10000), 16)
        yield from split(0, stop - 0x10000, 16)


def common_bits(number: int, other: int) -> int:
    """The most bits that blocks of two numberings may have which differ by a constant: there both end in zeros."""
    difference = abs(number - other) & 0xFFFF
    return (difference & -difference).bit_length() - 1 if difference else 16


def expand(first: Numbering, ranks: Ranks) -> Iterator[tuple[int, str, str | None, str | None]]:
    """(rank, MAC, IPv4 address, IPv6 address) of each of ``ranks``; in plain arithmetic, for there may be many."""
    number = mac_number(first.mac)
    four = int(IPv4Address(first.address)) if first.address is not None else None
    # VMs have one group of an IPv6 address, and it is never zero (addresses.vm_address6).
    head6, _, last6 = first.address6.rpartition(":") if first.address6 is not None else ("", "", "0")
    six = int(last6, 16)
    for begin, end in ranks:
        for rank in range(begin, end):
            yield (
                rank,
                with_number(first.mac, number + rank),
                dotted(four + rank) if four is not None else None,
                f"{head6}:{six + rank:x}" if six else None,
            )


def dotted(number: int) -> str:
    """An IPv4 address as text."""
    return f"{number >> 24}.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"


def to_ranks(ranges: Sequence[range]) -> Ranks:
    """Ranges without the empty ones; neighbours become one."""
    found: list[tuple[int, int]] = []
    for each in ranges:
        if not each:
            continue
        if found and found[-1][1] == each.start:
            found[-1] = (found[-1][0], each.stop)
        else:
            found.append((each.start, each.stop))
    return tuple(found)
