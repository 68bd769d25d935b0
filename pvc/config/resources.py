# SPDX-License-Identifier: Apache-2.0
"""resources.yaml: what a VM gets besides cores and memory, under a name that templates use."""

from __future__ import annotations

from collections.abc import Mapping

from pvc.config import setting
from pvc.config.setting import Scope, Setting, Table
from pvc.config.yamlmarks import Document
from pvc.model.network import EthernetNetwork, Layer, Network, ResourceSet

ENTRY = Table(
    settings=(
        Setting(
            "networks",
            setting.list_of(setting.text(name="name", expected="a network's name"), empty=True),
            "Networks of networks.yaml, in the order of the VM's interfaces. Without any, VMs have none.",
            required=True,
        ),
        Setting(
            "default",
            setting.boolean(),
            "Whether templates that name no resource set use this one, and every image is a template of its own.",
            default=False,
        ),
    ),
)


def read_resources(document: Document, networks: Mapping[str, Network] | None) -> dict[str, ResourceSet]:
    """The resource sets of a document; ``networks`` None: networks.yaml has problems of its own."""
    found: dict[str, ResourceSet] = {}
    for name, value, scope in setting.named_entries(document):
        before = len(document.problems)
        values = ENTRY.read(value, scope)
        if len(document.problems) > before:
            continue
        found[name] = ResourceSet(name, values["networks"], values["default"])
        if networks is not None:
            _check_networks(found[name], networks, scope.at("networks"))
    defaults = [each.name for each in found.values() if each.default]
    for name in defaults[1:]:
        document.add((name, "default"), f"{defaults[0]!r} is the default already")
    return found


def find_default(sets: Mapping[str, ResourceSet]) -> ResourceSet | None:
    """The set that is used where none is named."""
    return next((each for each in sets.values() if each.default), None)


def _check_networks(resource_set: ResourceSet, networks: Mapping[str, Network], scope: Scope) -> None:
    seen: list[Network] = []
    for index, name in enumerate(resource_set.networks):
        network = networks.get(name)
        if network is None:
            known = ", ".join(networks) or "none"
            scope.at(index).add(f"there is no network {name!r} in networks.yaml (there: {known})")
            continue
        for other in seen:
            if other is network:
                scope.at(index).add(f"{name!r} is named twice")
            elif not isinstance(network, EthernetNetwork) or not isinstance(other, EthernetNetwork):
                continue
            elif Layer.L2 not in (network.layer, other.layer) and network.int_network.overlaps(other.int_network):
                scope.at(index).add(
                    f"int-network {network.int_network} of {name!r} overlaps that of {other.name!r} "
                    f"({other.int_network}), so a VM cannot have both"
                )
        seen.append(network)
