# SPDX-License-Identifier: Apache-2.0
"""``pvc doctor --node``: what services of the node's own would do to networks of clusters."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence

from pvc.errors import PvcError
from pvc.host import managers, underlay, walls
from pvc.host.managers import Manager
from pvc.model.network import BridgedNetwork, DataPath, EthernetNetwork, Layer, Network
from pvc.model.site import SiteConfig
from pvc.ops.checkup import Finding, ok, warn
from pvc.plan import unmanaged
from pvc.plan.walls import Walls, find_taken, open_port, open_way

_SHOWN = 4


def check_firewall(config: SiteConfig) -> Iterator[Finding]:
    """Whether firewalld, where it runs, lets tunnels in and clusters out; for root."""
    networks = list(config.ethernets.values())
    device = _find_underlay(config)
    zone = walls.read_zone(device)
    if zone is None:
        yield ok("firewall", "firewalld does not run")
        return
    wall = Walls("input", zone)
    found = []
    for port in sorted({each.vxlan_port for each in networks if each.data_path is DataPath.KERNEL}):
        if not walls.lets_in(zone, port):
            text = (
                f"zone {zone} of firewalld ({device or 'of the tunnels'}) does not list UDP {port}: VMs of "
                "different nodes do not reach each other unless a rule or a service of the site's lets it in"
            )
            found.append(warn("firewall", text, _as_root(open_port(wall, port))))
    prefixes = sorted({each.dev_prefix for each in networks if each.layer is Layer.L3})
    closed = [each for each in prefixes if not walls.trusts(f"{each}+")]
    if closed:
        text = (
            f"firewalld has devices {_some([f'{each}*' for each in closed])} in no zone that accepts what they bring: "
            "VMs do not get out of the node unless a policy of the site's lets them"
        )
        found.append(warn("firewall", text, _as_root(open_way(wall, closed, walls.read_others(closed)))))
    yield from found
    if not found:
        yield ok("firewall", f"firewalld lets tunnels in (zone {zone}) and clusters out")


def check_managers(config: SiteConfig) -> Iterator[Finding]:
    """Whether NetworkManager and systemd-networkd, where they run, leave clusters' devices alone."""
    prefixes = sorted({_prefix(each) for each in config.networks.values()} - {""})
    running = managers.read_managers(unmanaged.samples(prefixes))
    for each in running:
        yield _judge(each, prefixes)
    if not running:
        yield ok("devices", "neither NetworkManager nor systemd-networkd runs")


def _judge(manager: Manager, prefixes: Sequence[str]) -> Finding:
    others = walls.read_others(prefixes)
    wanted = unmanaged.patterns(prefixes)
    held = [name for name in manager.held if unmanaged.is_of(name, wanted) and name not in others]
    if not held and not manager.taken:
        return ok("devices", f"{manager.name} leaves alone {', '.join(wanted)}")
    by = f" by {', '.join(files)}" if (files := sorted({*manager.taken.values()} - {""})) else ""
    has = f"has {_some(held)} for its own" if held else f"would take devices of clusters{by}"
    text = (
        f"{manager.name} {has}: it turns IPv6 on and asks for DHCP there, where VMs may answer, takes ports "
        "out of their bridges, and may set down what it lets go of"
    )
    if taken := find_taken(prefixes, others):
        return warn("devices", text, f"{taken}: give that network another dev-prefix or tap-prefix")
    return warn("devices", text, f"as root: {unmanaged.leave_alone(manager.name, wanted)}")


def _prefix(network: Network) -> str:
    match network:
        case EthernetNetwork():
            return network.dev_prefix
        case BridgedNetwork():
            return network.tap_prefix
    return ""


def _find_underlay(config: SiteConfig) -> str | None:
    """The device to the other nodes; None: this node's name does not tell, and jobs will be refused."""
    if config.batch.underlay_device is not None:
        return config.batch.underlay_device
    try:
        return underlay.read_own(socket.gethostname().partition(".")[0], None).device
    except PvcError:
        return None


def _as_root(commands: str | None) -> str | None:
    return f"as root: {commands}" if commands else None


def _some(texts: Sequence[str]) -> str:
    shown = ", ".join(texts[:_SHOWN])
    return shown if len(texts) <= _SHOWN else f"{shown} and {len(texts) - _SHOWN} more"
