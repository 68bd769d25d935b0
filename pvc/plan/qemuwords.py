# SPDX-License-Identifier: Apache-2.0
"""Words of QEMU's command line: devices at their slots, options, JSON."""

from __future__ import annotations

import json
from typing import Any

from pvc.model.hardware import Hardware


def device(hardware: Hardware, model: str, slot: int, **properties: str) -> str:
    """A device at its fixed slot, or on the virtio-mmio bus of a machine without PCI."""
    if not hardware.bus:
        properties.pop("romfile", None)
        return options(f"{model}-device", **properties)
    name = f"{model}-pci" if model.startswith(("virtio-", "vhost-user-")) else model
    return options(name, bus=hardware.bus, addr=f"{slot:#x}", **properties)


def options(name: str, **properties: str) -> str:
    """``name,key=value,...``."""
    # QEMU's own quoting: a comma within a value is written twice.
    return ",".join([name, *(f"{key}={value.replace(',', ',,')}" for key, value in properties.items())])


def to_json(value: dict[str, Any]) -> str:
    """A value of -blockdev."""
    return json.dumps(value, separators=(",", ":"))
