# SPDX-License-Identifier: Apache-2.0
"""A VM's files on its node: private directory, overlay, seed."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

from pvc import files, run
from pvc.config.share import find_share
from pvc.errors import GuestError, HostError, PvcError
from pvc.host import shareguard
from pvc.host.firmware import find_firmware
from pvc.host.overlay import write_overlay
from pvc.host.seed import write_seed
from pvc.host.virtiofsd import find_virtiofsd
from pvc.model.cluster import ClusterSpec
from pvc.model.vm import Disk, ExtraDisk, Firmware, VmTemplate
from pvc.plan.cloudinit import SeedSpec, plan_seed
from pvc.plan.disks import plan_empty, plan_overlay
from pvc.plan.helpers import Helper, HelperPaths, plan_helpers, shared_mounts
from pvc.plan.qemudrives import VmPaths
from pvc.supervisor.share import VmShare

_TPM = "tpm"
_PROGRAMS = {"swtpm": "swtpm", "unshare": "util-linux"}
LOG = logging.getLogger(__name__)

_ELF = b"\x7fELF"


def prepare_vm(vm: VmShare, spec: ClusterSpec, instance_id: str) -> VmPaths:
    """Make the VM's directory with its overlay and seed, replacing what an earlier start left.

    :raise GuestError: QEMU or a file of the image is missing, or the directory cannot be written; names the path.
    """
    _check_template(vm.template)
    try:
        files.remove_tree(vm.directory)
        files.ensure_private_dir(vm.directory)
        overlay = _make_overlay(vm)
        disks = tuple(_make_disk(vm, i, disk) for i, disk in enumerate(vm.template.disks, start=1))
        seed = vm.directory / "seed.iso"
        agent = read_agent()
        write_seed(seed, {**plan_seed(seed_spec(vm, spec, instance_id, agent=bool(agent))), **agent})
        firmware = _make_firmware(vm)
        if vm.template.tpm:
            files.ensure_private_dir(vm.directory / _TPM)
    except OSError as err:
        raise write_error(vm.directory, err) from err
    except PvcError as err:
        raise GuestError(f"cannot make {vm.directory}") from err
    return VmPaths(os.fspath(overlay) if overlay else None, os.fspath(seed), disks, firmware)


def find_helpers(vm: VmShare) -> tuple[Helper, ...]:
    """What runs beside the VM's QEMU.

    :raise GuestError: a program for it is missing on this node.
    """
    template = vm.template
    daemon = find_virtiofsd(Path.home()) if shared_mounts(template) else None
    guard = (sys.executable, "-I", "-S", shareguard.__file__)
    found = plan_helpers(template, HelperPaths(os.fspath(vm.directory / _TPM), guard, daemon))
    for helper in found:
        for program in helper.argv[0], helper.program:
            if program in _PROGRAMS and shutil.which(program, path=run.PATH) is None:
                raise GuestError(
                    f"template {template.name}: there is no {program} on this node, which its {helper.what} needs",
                    hint=f"install it on the nodes (Debian: {_PROGRAMS[program]})",
                )
    return found


def write_error(directory: Path, err: OSError) -> GuestError:
    """What it means that a file below ``directory`` could not be written."""
    hint = None
    if err.errno in {errno.ENOSPC, errno.EDQUOT}:
        hint = f"free space below {directory.parent}, or let the site set run-dir in batch.yaml to a larger disk"
    return GuestError(f"cannot write the VM's files in {directory}", hint=hint)


def overlay_path(vm: VmShare, number: int) -> Path:
    """What a VM has written to its disk 0, the image's, or to one of the template's ``disks``."""
    return vm.directory / (f"disk{number}.qcow2" if number else "disk.qcow2")


def _make_overlay(vm: VmShare) -> Path | None:
    disk = vm.template.disk
    if disk is None:
        return None
    overlay = overlay_path(vm, 0)
    try:
        write_overlay(overlay, plan_overlay(disk.path, disk.format, disk.size))
    except ValueError as err:
        raise GuestError(f"template {vm.template.name}: its image cannot be used") from err
    return overlay


def _make_disk(vm: VmShare, number: int, disk: ExtraDisk) -> str:
    path = overlay_path(vm, number)
    try:
        base = disk.base
        plan = plan_empty(disk.size) if base is None else plan_overlay(base.path, base.format, disk.size)
    except ValueError as err:
        raise GuestError(f"template {vm.template.name}: disk {number} cannot be made") from err
    write_overlay(path, plan)
    return os.fspath(path)


def _make_firmware(vm: VmShare) -> Firmware | None:
    """The firmware, with variables of the VM's own."""
    template = vm.template
    if template.firmware == "bios":
        return None
    found = find_firmware(template.machine_type, secure=template.firmware == "uefi-secure", home=Path.home())
    own = vm.directory / "uefi-variables"
    shutil.copyfile(found.variables, own)
    own.chmod(0o600)
    return replace(found, variables=os.fspath(own))


def seed_spec(vm: VmShare, spec: ClusterSpec, instance_id: str = "", *, agent: bool = True) -> SeedSpec:
    """What the VM's guest is to learn."""
    return SeedSpec(
        instance_id=vm.template.instance_id or f"{instance_id}-{vm.name}",
        hostname=vm.name,
        nics=vm.grant.nics,
        authorized_keys=(*spec.authorized_keys, spec.keys.ssh_key_pub.strip()),
        host_key=spec.keys.host_key,
        host_key_pub=spec.keys.host_key_pub,
        user_data=vm.template.user_data,
        mounts=vm.template.mounts,
        agent=agent,
    )


@cache
def read_agent() -> dict[str, bytes]:
    """The agent's files for the seed, by name; without them a guest may have its own."""
    try:
        directory = find_share() / "agent"
        return {name: (directory / name).read_bytes() for name in ("pvc-agent", "pvc-agent.sh")}
    except (OSError, HostError) as err:
        LOG.warning("guests get no agent: %s (make agent)", err)
        return {}


def _name_files(what: str, disk: Disk | None) -> dict[str, str | None]:
    """The files that a disk reads from; ``what`` it is called."""
    if disk is None:
        return {}
    below = {f"{what} (layer {i})": each.path for i, each in enumerate(disk.below, start=1)}
    return {**below, what: disk.path}


def _check_template(template: VmTemplate) -> None:
    if shutil.which(template.qemu_bin, path=run.PATH) is None:
        raise GuestError(
            f"template {template.name}: there is no {template.qemu_bin} on this node",
            hint="install QEMU (Debian: qemu-system-x86), or set qemu-bin in the template",
        )
    for mount in template.mounts:
        if not os.path.isdir(mount.source) or not os.access(mount.source, os.R_OK | os.X_OK):
            raise GuestError(
                f"template {template.name}: {mount.source}, for {mount.target}, is no directory that you can read here",
                hint="directories for VMs must be there on every node of the job",
            )
    wanted = _name_files("image", template.disk)
    if template.boot is not None:
        wanted |= {"kernel": template.boot.kernel, "initrd": template.boot.initrd}
    for i, disk in enumerate(template.disks, start=1):
        wanted |= _name_files(f"disk {i}", disk.base)
    for what, path in wanted.items():
        if path is None:
            continue
        try:
            with open(path, "rb") as stream:
                head = stream.read(len(_ELF))
        except OSError as err:
            raise GuestError(
                f"template {template.name}: its {what} cannot be read on this node",
                hint="images must be on a file system that every node mounts at the same place",
            ) from err
        if what == "kernel" and head == _ELF and template.firmware != "bios":
            raise GuestError(
                f"template {template.name}: {template.firmware} cannot start the kernel of its image, an ELF file",
                hint="use firmware: bios, or an image with a boot loader or a bzImage kernel",
            )
