"""Words of QEMU's command line: devices at their slots, options, JSON."""

from __future__ import annotations

import json
from typing import Any

from pvc.model.vm import VmTemplate


def base_machine(template: VmTemplate) -> str:
    """The machine type without its options."""
    return template.machine_type.split(",")[0]


def has_isa(template: VmTemplate) -> bool:
    """Whether the machine has an ISA bus."""
    base = base_machine(template)
    return base in {"q35", "pc"} or base.startswith(("pc-q35", "pc-i440fx"))


def device(template: VmTemplate, model: str, slot: int, **properties: str) -> str:
    """A device at its fixed slot, or on the virtio-mmio bus of a machine without PCI."""
    if base_machine(template) == "microvm":
        properties.pop("romfile", None)
        return options(f"{model}-device", **properties)
    name = f"{model}-pci" if model.startswith(("virtio-", "vhost-user-")) else model
    express = "q35" in template.machine_type or template.machine_type.startswith("virt")
    bus = "pcie.0" if express else "pci.0"
    return options(name, bus=bus, addr=f"{slot:#x}", **properties)


def boots_over_network(template: VmTemplate) -> bool:
    """Whether a VM has nothing else to boot from. An option ROM costs each boot a probe, so only such VMs have one."""
    return template.disk is None and template.boot is None


def options(name: str, **properties: str) -> str:
    """``name,key=value,...``."""
    # QEMU's own quoting: a comma within a value is written twice.
    return ",".join([name, *(f"{key}={value.replace(',', ',,')}" for key, value in properties.items())])


def to_json(value: dict[str, Any]) -> str:
    """A value of -blockdev."""
    return json.dumps(value, separators=(",", ":"))
