# SPDX-License-Identifier: Apache-2.0
"""The commands that let clusters pass a node's own firewall, in the words of whoever rules it.

A rule is worth something where it outlives the next reload: firewalld forgets what nft was told, and what iptables-nft
wrote is saved by iptables. So the program that the rules belong to is the one that is named.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from pvc.plan.names import UPLINK_GROUP

# Tables of these names are those of iptables-nft(8), and its chains are in capitals.
_IPTABLES = {"ip": "iptables", "ip6": "ip6tables"}
_HOOKS = {"input": "INPUT", "forward": "FORWARD"}


@dataclass(frozen=True)
class Walls:
    """What of a node may drop what pvc's own rules accept, at one hook ("input", "forward").

    ``zone``: firewalld runs, and this is the zone of the device in question. ``closed``: chains of nftables that drop
    what none of their rules accepts, as "family table chain". ``legacy``: programs whose chain of the hook does so in
    the kernel's older tables, which nft does not show ("iptables-legacy").
    """

    hook: str
    zone: str | None = None
    closed: tuple[str, ...] = ()
    legacy: tuple[str, ...] = ()

    def of(self, families: Collection[str]) -> Walls:
        """Those that packets of these families ("ip", "ip6") meet."""
        closed = tuple(each for each in self.closed if each.split()[0] in {*families, "inet"})
        legacy = tuple(each for each in self.legacy if ("ip6" if each.startswith("ip6") else "ip") in families)
        return Walls(self.hook, self.zone, closed, legacy)

    def describe(self) -> str:
        """Who may have dropped it; empty: nobody knows."""
        found = [f"chain {', '.join(self.closed)} drops what no rule accepts"] if self.closed else []
        found += [f"{_HOOKS[self.hook]} of {each} drops what no rule accepts" for each in self.legacy]
        found += ["firewalld refuses what no zone or policy of it lets pass"] if self.zone is not None else []
        return "; ".join(found)


def open_port(walls: Walls, port: int) -> str | None:
    """Commands that let datagrams to a UDP port in; None: nobody knows who drops them."""
    commands = [_program_rule(each, walls.hook, f"-p udp --dport {port}") for each in walls.legacy]
    for chain in walls.closed:
        program = _owner(chain, walls.hook)
        rule = f"nft insert rule {chain} udp dport {port} accept"
        commands.append(_program_rule(program, walls.hook, f"-p udp --dport {port}") if program else rule)
    if walls.zone is not None:
        commands += _firewalld(f"--zone={walls.zone} --add-port={port}/udp")
    return _join(commands)


def open_way(walls: Walls, prefixes: Sequence[str], devices: Collection[str]) -> str | None:
    """Commands that let clusters out, and what is for them in; None: nobody knows who drops it.

    ``prefixes`` are those of the cluster's networks, ``devices`` all of the node that are not pvc's.
    """
    commands = []
    ways = (("iifgroup", "--src-group"), ("oifgroup", "--dst-group"))
    for program in walls.legacy:
        commands += [_program_rule(program, walls.hook, _group(option)) for _, option in ways]
    for chain in walls.closed:
        owner = _owner(chain, walls.hook)
        for word, option in ways:
            rule = f"nft insert rule {chain} {word} {UPLINK_GROUP} accept"
            commands.append(_program_rule(owner, walls.hook, _group(option)) if owner else rule)
    if walls.zone is not None:
        if taken := find_taken(prefixes, devices):
            return f"{taken}: give that network another dev-prefix, which firewalld can tell from the node's own"
        commands += _firewalld(" ".join(["--zone=trusted", *(f"--add-interface={each}+" for each in prefixes)]))
    return _join(commands)


def find_taken(prefixes: Sequence[str], devices: Collection[str]) -> str:
    """Why a pattern for the devices of clusters would be one for devices of the node's, too; empty: it would not."""
    for prefix in prefixes:
        if found := sorted(name for name in devices if name.startswith(prefix)):
            return f"the node's own {found[0]} begins with {prefix!r}, too"
    return ""


def _owner(chain: str, hook: str) -> str | None:
    """The program of iptables-nft that keeps a chain of nftables; None: it is nft's."""
    family, table, name = chain.split()
    return _IPTABLES.get(family) if (table, name) == ("filter", _HOOKS[hook]) else None


def _program_rule(program: str, hook: str, match: str) -> str:
    return f"{program} -I {_HOOKS[hook]} {match} -j ACCEPT"


def _group(option: str) -> str:
    return f"-m devgroup {option} {UPLINK_GROUP:#x}"


def _firewalld(words: str) -> list[str]:
    return [f"firewall-cmd --permanent {words}", "firewall-cmd --reload"]


def _join(commands: Sequence[str]) -> str | None:
    return "; ".join(commands) or None
