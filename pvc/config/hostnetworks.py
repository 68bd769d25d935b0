# SPDX-License-Identifier: Apache-2.0
"""The tables of networks.yaml for networks that a site has already: bridges and PCI devices of its nodes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pvc.config import setting
from pvc.config.setting import Scope, Setting, Table
from pvc.config.yamlmarks import Document
from pvc.model.network import BridgedNetwork, Network, PciNetwork, Tagging, Vlan

# A device name has 15 characters: two dots, six for a job's number and three for a VM's, in base 36 (plan.names).
MAX_TAP_PREFIX = 4
MAX_DEVICE = 15

_PCI = re.compile(r"(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}:[01][0-9a-f]\.[0-7])")


def _parse_pci(text: str) -> str:
    """A PCI address as sysfs writes it; the domain 0000 may be left out."""
    match = _PCI.fullmatch(text.lower())
    if match is None:
        raise ValueError(f"{text!r} is not a PCI address such as 0000:3b:00.1")
    return f"{match[1] or '0000'}:{match[2]}"


VLAN = Table(
    settings=(
        Setting("vid", setting.integer(1, 4094), "The number of the VLAN.", required=True),
        Setting(
            "type",
            setting.choice("tagged", "native", "untagged", parse=Tagging),
            "``tagged``: VMs see and send its frames with their tag. ``native``: frames without a tag belong to it, "
            "beside tagged ones of others; one at most. ``untagged``: VMs are in this VLAN alone and see no tags.",
            default="tagged",
        ),
    ),
)

BRIDGED = Table(
    settings=(
        Setting(
            "host-bridge",
            setting.word("text", r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}", "the name of a network device"),
            "The bridge on every node that VMs become ports of, a Linux bridge or one of Open vSwitch. pvc neither "
            "makes nor changes it; a Linux bridge without other ports must have been given a MAC.",
            required=True,
        ),
        Setting(
            "tap-prefix",
            setting.word(
                "text",
                rf"[A-Za-z][A-Za-z0-9_-]{{0,{MAX_DEVICE - 1}}}",
                f"1 to {MAX_DEVICE} letters and digits",
            ),
            "How the names of the VMs' devices on the node begin; no other network may have the same. Numbers of a job "
            f"and a VM leave room for {MAX_TAP_PREFIX} letters: a longer prefix stands for its first "
            f"{MAX_TAP_PREFIX - 1} and its last one, *etha* for ``ethtapa``.",
            required=True,
        ),
        Setting("mtu", setting.integer(68, 65535), "What VMs are told; the bridge must carry as much.", default=1500),
        Setting(
            "vlans",
            setting.list_of(
                setting.mapping(VLAN, lambda values: Vlan(values["vid"], values["type"]), "a mapping with vid and type")
            ),
            "VLANs that VMs take part in, if the bridge has several.",
            default=[],
            default_text="whatever the bridge does with ports",
        ),
    ),
)


GENERIC_PCI = Table(
    settings=(
        Setting(
            "host-device-addrs",
            setting.list_of(
                setting.text(_parse_pci, name="PCI address", expected="a PCI address such as 0000:3b:00.1"),
                minimum=1,
            ),
            "Devices that VMs may have, one each; a node need not have all of them. Those that share an IOMMU group go "
            "to one VM. With *gres*: all devices of that name, of whichever type, in the order of gres.conf(5).",
            required=True,
        ),
        Setting(
            "host-driver",
            setting.word("text", r"[A-Za-z0-9_-]{1,64}", "the name of a kernel's driver"),
            "The driver that the devices have while no VM has them; one that is at another driver is left alone.",
            required=True,
        ),
        Setting(
            "gres",
            setting.word("text", r"[A-Za-z][A-Za-z0-9_]{0,63}(?::[A-Za-z0-9_.-]{1,63})?", "a GRES as gpu or gpu:a100"),
            "The generic resource of Slurm's, with or without its type, that the devices are. VMs then get those that "
            "Slurm gave to their job, as many each, and no others: their templates ask for them by *gres*. Slurm's "
            "index *i* (``IDX`` of **scontrol show job -d**) is the *i*-th of the listed devices that the node has, "
            "from 0, and the node must have as many of them as Slurm counts.",
            default_text="any free device",
        ),
    ),
)


def build_pci(name: str, values: dict[str, Any], scope: Scope) -> PciNetwork:
    """The network of checked values; an address that is there twice is noted."""
    addresses: tuple[str, ...] = values["host-device-addrs"]
    for index, address in enumerate(addresses):
        if address in addresses[:index]:
            scope.at("host-device-addrs").at(index).add(f"{address} is there already")
    return PciNetwork(name, addresses, values["host-driver"], values["gres"])


def check_devices(networks: Mapping[str, Network], document: Document) -> None:
    """A device that Slurm gives out is nobody else's to give; what contradicts that is noted."""
    first: dict[str, PciNetwork] = {}
    for name, network in networks.items():
        if not isinstance(network, PciNetwork):
            continue
        for index, address in enumerate(network.host_devices):
            other = first.setdefault(address, network)
            if _gres_name(other) != _gres_name(network):
                text = f"{address} is in network {other.name!r}, too, with another gres or none"
                document.add((name, "settings", "host-device-addrs", index), text)


def _gres_name(network: PciNetwork) -> str:
    return (network.gres or "").partition(":")[0]


def build_bridged(name: str, values: dict[str, Any], scope: Scope) -> BridgedNetwork:
    """The network of checked values; what two keys together have wrong is noted."""
    vlans: tuple[Vlan, ...] = values["vlans"]
    inner = scope.at("vlans")
    seen: set[int] = set()
    for index, vlan in enumerate(vlans):
        if vlan.vid in seen:
            inner.at(index).add(f"VLAN {vlan.vid} is there already")
        seen.add(vlan.vid)
        if vlan.tagging is Tagging.UNTAGGED and len(vlans) > 1:
            inner.at(index).add("with an untagged VLAN there can be no other; native goes with tagged ones")
    natives = [index for index, vlan in enumerate(vlans) if vlan.tagging is Tagging.NATIVE]
    for index in natives[1:]:
        inner.at(index).add(f"VLAN {vlans[natives[0]].vid} is native already, and a port has one")
    prefix: str = values["tap-prefix"]
    if len(prefix) > MAX_TAP_PREFIX:
        # The last letter is what tells a site's prefixes apart: ethtapa and ethtapb, tap0 and tap1.
        prefix = prefix[: MAX_TAP_PREFIX - 1] + prefix[-1]
        scope.at("tap-prefix").warn(f"devices are called {prefix}.…, for a job's and a VM's number need the room")
    return BridgedNetwork(name, values["host-bridge"], prefix, values["mtu"], vlans)
