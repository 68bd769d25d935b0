# SPDX-License-Identifier: Apache-2.0
"""A kernel's PCI bus in a directory: what it does when its files are written.

By Documentation/ABI/testing/sysfs-bus-pci: "bind" and "unbind" of drivers refuse devices that are not theirs (ENODEV),
"driver_override" decides alone which driver may bind while it is set and is cleared by a newline, "drivers_probe" binds
by it or by the driver that knows the device's id. By Documentation/driver-api/vfio.rst: /dev/vfio/GROUP is there while
a device of the group is at a VFIO driver.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from pvc.host.vfio import VFIO, Bus


class Kernel:
    """``ids`` says which driver knows a device by its id."""

    def __init__(self, top: Path) -> None:
        self.pci, self.nodes, self.groups = top / "sys/bus/pci", top / "dev/vfio", top / "sys/kernel/iommu_groups"
        self.ids: dict[str, str] = {}
        self.written: list[str] = []
        for place in (self.pci / "devices", self.pci / "drivers", self.nodes):
            place.mkdir(parents=True)
        (self.pci / "drivers_probe").touch()

    def bus(self) -> Bus:
        return Bus(self.pci, self.nodes, self.write)

    def add_driver(self, name: str) -> None:
        (self.pci / "drivers" / name).mkdir()
        for file in ("bind", "unbind"):
            (self.pci / "drivers" / name / file).touch()

    def add_device(self, address: str, *, group: int | None, driver: str | None, known_by: str = "") -> None:
        place = self.pci / "devices" / address
        place.mkdir()
        (place / "driver_override").write_text("(null)\n")
        self.ids[address] = known_by or driver or ""
        if group is not None:
            members = self.groups / str(group) / "devices"
            members.mkdir(parents=True, exist_ok=True)
            (members / address).symlink_to(place)
            (place / "iommu_group").symlink_to(self.groups / str(group))
        if driver is not None:
            self._bind(address, driver)

    def driver(self, address: str) -> str | None:
        return self.bus().driver(address)

    def override(self, address: str) -> str:
        return (self.pci / "devices" / address / "driver_override").read_text().strip()

    def write(self, path: Path, text: str) -> None:
        """A write to a file of sysfs."""
        if not path.exists():
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        real = path.resolve()
        self.written.append(f"{real.relative_to(self.pci)} {text.strip()}")
        match real.name:
            case "driver_override":
                real.write_text(text if text.strip() else "(null)\n")
            case "unbind":
                if self.driver(text) != real.parent.name:
                    raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
                self._unbind(text)
            case "bind":
                if self.driver(text) is not None or not self._matches(text, real.parent.name):
                    raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
                self._bind(text, real.parent.name)
            case "drivers_probe":
                for driver in sorted(entry.name for entry in (self.pci / "drivers").iterdir()):
                    if self.driver(text) is None and self._matches(text, driver):
                        self._bind(text, driver)
            case other:
                raise AssertionError(other)

    def _matches(self, address: str, driver: str) -> bool:
        override = self.override(address)
        return driver == (self.ids[address] if override == "(null)" else override)

    def _bind(self, address: str, driver: str) -> None:
        place = self.pci / "devices" / address
        (place / "driver").symlink_to(self.pci / "drivers" / driver)
        if driver == VFIO and (place / "iommu_group").exists():
            (self.nodes / (place / "iommu_group").resolve().name).touch()

    def _unbind(self, address: str) -> None:
        place = self.pci / "devices" / address
        (place / "driver").unlink()
        group = (place / "iommu_group").resolve()
        if group.parent == self.groups and not any(
            self.driver(member.name) == VFIO for member in (group / "devices").iterdir()
        ):
            (self.nodes / group.name).unlink(missing_ok=True)
