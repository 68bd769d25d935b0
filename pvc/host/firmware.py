# SPDX-License-Identifier: Apache-2.0
"""UEFI firmware of this node, found as QEMU's own descriptors tell (docs/interop/firmware.json of QEMU).

A descriptor says where the code and the template of the variables are, for which machines, and what it can do.
"""

from __future__ import annotations

import os
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pvc.errors import GuestError
from pvc.host.descriptors import read_descriptors
from pvc.model.vm import Firmware

SYSTEM_DIRS = (Path("/etc/qemu/firmware"), Path("/usr/share/qemu/firmware"))
# Descriptors name machines by versions: pc-q35-7.2.
_ALIASES = {"q35": "pc-q35-0.0", "pc": "pc-i440fx-0.0"}


def find_firmware(machine_type: str, *, secure: bool, home: Path) -> Firmware:
    """The first firmware for a machine; ``variables`` is a template, to be copied.

    :raise GuestError: this node has none.
    """
    name = machine_type.partition(",")[0]
    for descriptor in read_descriptors((home / ".config/qemu/firmware", *SYSTEM_DIRS)):
        found = _understand(descriptor, _ALIASES.get(name, name), secure=secure)
        if found is not None and os.access(found.code, os.R_OK) and os.access(found.variables, os.R_OK):
            return found
    what = "UEFI firmware with Secure Boot" if secure else "UEFI firmware"
    raise GuestError(f"this node has no {what} for machine {name}", hint="install it on the nodes (Debian: ovmf)")


def _understand(descriptor: Any, machine: str, *, secure: bool) -> Firmware | None:
    """What a descriptor offers, if it is what is asked for."""
    try:
        features = set(descriptor["features"])
        code = descriptor["mapping"]["executable"]
        variables = descriptor["mapping"]["nvram-template"]
        fits = (
            "uefi" in descriptor["interface-types"]
            and descriptor["mapping"]["device"] == "flash"
            and any(
                target["architecture"] == "x86_64" and any(fnmatchcase(machine, each) for each in target["machines"])
                for target in descriptor["targets"]
            )
            and ({"secure-boot", "enrolled-keys"} <= features if secure else "secure-boot" not in features)
            and code["format"] == variables["format"]
        )
        files = (code["filename"], variables["filename"], code["format"])
    except (KeyError, TypeError):
        return None
    if not fits or not all(isinstance(each, str) for each in files) or files[2] not in {"raw", "qcow2"}:
        return None
    return Firmware(*files, smm="requires-smm" in features)
