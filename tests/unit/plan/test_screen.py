"""Screens on QEMU's command line."""

from __future__ import annotations

import pytest

from pvc.errors import GuestError
from pvc.model.vm import VmTemplate
from pvc.plan.screen import plan_screen


def template(machine: str, protocol: str) -> VmTemplate:
    return VmTemplate("t", None, None, "nat", machine_type=machine, remote_display=protocol)


def test_vnc_on_a_pcie_machine() -> None:
    assert plan_screen(template("q35,smm=on", "vnc"), "/run/a,b/display.sock") == [
        *("-device", "VGA,bus=pcie.0,addr=0x2,id=screen0,vgamem_mb=8"),
        *("-vnc", "unix:/run/a,,b/display.sock"),
    ]


def test_spice_on_a_pci_machine() -> None:
    assert plan_screen(template("pc-i440fx-7.2", "spice"), "/run/display.sock") == [
        *("-device", "VGA,bus=pci.0,addr=0x2,id=screen0,vgamem_mb=8"),
        *("-spice", "unix=on,addr=/run/display.sock,disable-ticketing=on"),
    ]


def test_no_screen() -> None:
    assert plan_screen(template("microvm", "none"), None) == []
    with pytest.raises(GuestError, match="a microvm has no screen"):
        plan_screen(template("microvm,rtc=on", "vnc"), "/run/display.sock")
