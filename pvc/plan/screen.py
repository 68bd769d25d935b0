"""A VM's screen on QEMU's command line: a graphics card, and where it is served."""

from __future__ import annotations

from pvc.errors import GuestError
from pvc.model.vm import VmTemplate

_SLOT = 2  # free on pc and on q35
# A screen of 1920x1080. The default is for twice that, and the memory is the job's.
_VIDEO_MIB = 8


def plan_screen(template: VmTemplate, path: str | None) -> list[str]:
    """QEMU's arguments for a screen at the Unix socket ``path``; None: the VM has no screen.

    :raise GuestError: the machine cannot have one.
    """
    if path is None:
        return []
    machine = template.machine_type.split(",")[0]
    if machine == "microvm":
        raise GuestError(f"template {template.name}: a microvm has no screen: remote-display must be none")
    bus = "pcie.0" if "q35" in machine or machine.startswith("virt") else "pci.0"
    argv = ["-device", f"VGA,bus={bus},addr={_SLOT:#x},id=screen0,vgamem_mb={_VIDEO_MIB}"]
    # QEMU's own quoting: a comma within a value is written twice.
    place = path.replace(",", ",,")
    if template.remote_display == "spice":
        return [*argv, "-spice", f"unix=on,addr={place},disable-ticketing=on"]
    return [*argv, "-vnc", f"unix:{place}"]
