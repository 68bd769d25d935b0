# SPDX-License-Identifier: Apache-2.0
"""pvc network: the site's networks, and what the caller's clusters do on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from pvc.cli import output
from pvc.cli.options import json_option, narrowing_options
from pvc.model.network import BridgedNetwork, EthernetNetwork, Network, PciNetwork, ReverseNat

if TYPE_CHECKING:
    from pvc.ops.network import LiveNetwork, LiveView

_UNITS = ("", "K", "M", "G", "T", "P")


@click.group()
def network() -> None:
    """Look at networks: what the site offers, and how those of your clusters are used.

    Counters are those of the VMs' interfaces since the cluster began: rx is what a VM was sent, tx what it sent.
    """


@network.command("list")
@narrowing_options("Show only")
@json_option
def list_(job_id: int | None, job_name: str | None, as_json: bool) -> None:
    """List the site's networks, and which of your running clusters are on them."""
    from pvc.config.load import load_user_config
    from pvc.ops.network import try_live

    networks = load_user_config().networks
    live, error = try_live(job_id, job_name)
    if error is not None:
        output.print_note(f"running clusters are not shown: {error}")
    if job_id is not None or job_name is not None:
        networks = {each.network: networks[each.network] for each in live.networks if each.network in networks}
    if as_json:
        output.print_json([_data(each, live) for each in networks.values()])
    elif networks:
        rows = [_row(each, live) for each in networks.values()]
        header = ["NETWORK", "TYPE", "LAYER", "DATA-PATH", "ADDRESSES", "MTU", "OUTBOUND", "PORTS", "LIMIT", "JOBS"]
        output.print_table(header, rows)
    else:
        output.print_note("there are no networks")
    _print_silent(live)


@network.command()
@click.argument("name")
@narrowing_options("Show only")
@json_option
def show(name: str, job_id: int | None, job_name: str | None, as_json: bool) -> None:
    """Show the network NAME: its settings, and members, addresses, ports and counters of your running clusters."""
    from pvc.config.load import load_user_config
    from pvc.errors import UsageError
    from pvc.ops.network import try_live

    networks = load_user_config().networks
    if name not in networks:
        raise UsageError(f"there is no network {name!r}", hint=f"networks: {', '.join(sorted(networks)) or 'none'}")
    live, error = try_live(job_id, job_name)
    if error is not None:
        output.print_note(f"running clusters are not shown: {error}")
    if as_json:
        output.print_json(_data(networks[name], live))
    else:
        for key, value in _settings(networks[name]):
            output.say(f"{key:<14} {value}")
        for each in live.networks:
            if each.network == name:
                _print_live(each)
    _print_silent(live)


def _settings(item: Network) -> list[tuple[str, object]]:
    """What is worth a line; the keys are those of networks.yaml."""
    head: list[tuple[str, object]] = [("network", item.name), ("type", _type(item))]
    if isinstance(item, BridgedNetwork):
        return [
            *head,
            ("host-bridge", item.host_bridge),
            ("addresses", "the site's"),
            ("mtu", item.mtu),
            ("vlans", ", ".join(_vlans(item)) or "-"),
        ]
    if isinstance(item, PciNetwork):
        given = [("gres", item.gres)] if item.gres else []
        return [*head, ("devices", ", ".join(item.host_devices)), ("host-driver", item.host_driver), *given]
    layer3 = item.layer.value == "L3"
    return [
        *head,
        ("layer", item.layer.value),
        ("data-path", item.data_path.value),
        ("addresses", ", ".join(_addresses(item)) or "the VMs' own"),
        ("mtu", f"{item.mtu} (VMs: {item.mtu - 50})"),
        ("domain", item.domain_name if layer3 else "-"),
        ("outbound", item.allow_outbound.value if layer3 else "-"),
        ("ports", "; ".join(_forward(each) for each in item.reverse_nat) or "-"),
        ("limit", _limit(item) or "none"),
        ("vxlan", f"UDP {item.vxlan_port}, identifiers {item.min_vni}-{item.max_vni}"),
    ]


def _row(item: Network, live: LiveView) -> list[object]:
    jobs = ",".join(dict.fromkeys(str(each.job_id) for each in live.networks if each.network == item.name))
    if isinstance(item, BridgedNetwork):
        where = f"{item.host_bridge} {','.join(_vlans(item))}".strip()
        return [item.name, _type(item), None, where, None, item.mtu, None, None, None, jobs or None]
    if isinstance(item, PciNetwork):
        return [item.name, _type(item), None, item.host_driver, None, None, None, None, None, jobs or None]
    return [
        *(item.name, _type(item), item.layer.value, item.data_path.value),
        ",".join(_addresses(item)) or None,
        *(item.mtu, item.allow_outbound.value if item.layer.value == "L3" else None),
        *("; ".join(_forward(each) for each in item.reverse_nat) or None, _limit(item), jobs or None),
    ]


def _type(item: Network) -> str:
    return {BridgedNetwork: "bridged", PciNetwork: "genericpci"}.get(type(item), "ethernet")


def _vlans(item: BridgedNetwork) -> list[str]:
    return [f"{vlan.vid} {vlan.tagging.value}" for vlan in item.vlans]


def _addresses(item: EthernetNetwork) -> list[str]:
    if item.layer.value != "L3":
        return []
    return [str(each) for each in (item.int_network, item.int_network6) if each is not None]


def _limit(item: EthernetNetwork) -> str | None:
    return f"{item.bandwidth_mbit}Mbit/s" if item.bandwidth_mbit is not None else None


def _forward(item: ReverseNat) -> str:
    ports = str(item.first_vm_port)
    if item.last_vm_port != item.first_vm_port:
        ports += f"-{item.last_vm_port}"
    protocol = "" if item.protocol.value == "tcp" else f"/{item.protocol.value}"
    owner = " (owner)" if item.access.value == "owner" else ""
    return f"{ports}{protocol} at {item.min_host_port}-{item.max_host_port}{owner}"


def _data(item: Network, live: LiveView) -> dict[str, Any]:
    from pvc.codec import to_data

    clusters = [to_data(each) for each in live.networks if each.network == item.name]
    return {**to_data(item), "type": _type(item), "clusters": clusters, "silent": live.silent}


def _print_live(item: LiveNetwork) -> None:
    vni = f"VNI {item.vni}, " if item.vni is not None else ""
    mtu = f", VMs' MTU {item.mtu}" if item.mtu else ""
    output.say(f"\njob {item.job_id} ({item.cluster}): {vni}{item.data_path}{mtu}")
    header = ["VM", "NODE", "MAC", "ADDRESS", "PORTS", "RX", "RX-BYTES", "TX", "TX-BYTES", "DROPS"]
    rows: list[list[object]] = []
    for each in item.members:
        port = each.interface
        ports = ",".join(f"{inner}>{outer}" for inner, outer in port.ports.items())
        where = ",".join(address.partition("/")[0] for address in port.addresses)
        rows.append([each.vm, each.node, port.mac or None, where or None, ports or None, *_counted(port.counters)])
    for tunnel in item.tunnels:
        rows.append(["tunnel", tunnel.node, None, None, None, *_counted(tunnel.counters)])
    output.print_table(header, rows)


def _counted(counters: Any) -> Sequence[object]:
    if counters is None:
        return (None,) * 5
    drops = counters.rx_dropped + counters.tx_dropped
    return (counters.rx_packets, _size(counters.rx_bytes), counters.tx_packets, _size(counters.tx_bytes), drops)


def _size(count: int) -> str:
    value, unit = float(count), 0
    while value >= 10_000 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.0f}{_UNITS[unit]}"


def _print_silent(live: LiveView) -> None:
    for where, why in live.silent.items():
        output.print_note(f"{where}: {why}")
