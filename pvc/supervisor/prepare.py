"""A VM's files on its node: private directory, overlay, seed."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from pvc import files, run
from pvc.errors import GuestError, PvcError
from pvc.host.overlay import write_overlay
from pvc.host.seed import write_seed
from pvc.model.cluster import ClusterSpec
from pvc.model.vm import VmTemplate
from pvc.plan.cloudinit import SeedSpec, plan_seed
from pvc.plan.disks import plan_overlay
from pvc.plan.qemu import VmPaths
from pvc.supervisor.share import VmShare


def prepare_vm(vm: VmShare, spec: ClusterSpec, instance_id: str) -> VmPaths:
    """Make the VM's directory with its overlay and seed, replacing what an earlier start left.

    :raise GuestError: QEMU or a file of the image is missing, or the directory cannot be written; names the path.
    """
    _check_template(vm.template)
    try:
        files.remove_tree(vm.directory)
        files.ensure_private_dir(vm.directory)
        overlay = _make_overlay(vm)
        seed = vm.directory / "seed.iso"
        write_seed(seed, plan_seed(_seed_spec(vm, spec, instance_id)))
    except OSError as err:
        raise write_error(vm.directory, err) from err
    except PvcError as err:
        raise GuestError(f"cannot make {vm.directory}") from err
    return VmPaths(overlay=os.fspath(overlay) if overlay else None, seed=os.fspath(seed))


def write_error(directory: Path, err: OSError) -> GuestError:
    """What it means that a file below ``directory`` could not be written."""
    hint = None
    if err.errno in {errno.ENOSPC, errno.EDQUOT}:
        hint = f"free space below {directory.parent}, or let the site set run-dir in batch.yaml to a larger disk"
    return GuestError(f"cannot write the VM's files in {directory}", hint=hint)


def _make_overlay(vm: VmShare) -> Path | None:
    disk = vm.template.disk
    if disk is None:
        return None
    overlay = vm.directory / "disk.qcow2"
    try:
        write_overlay(overlay, plan_overlay(disk.path, disk.format, disk.size))
    except ValueError as err:
        raise GuestError(f"template {vm.template.name}: its image cannot be used") from err
    return overlay


def _seed_spec(vm: VmShare, spec: ClusterSpec, instance_id: str) -> SeedSpec:
    return SeedSpec(
        instance_id=f"{instance_id}-{vm.name}",
        hostname=vm.name,
        nics=vm.grant.nics,
        authorized_keys=(*spec.authorized_keys, spec.keys.ssh_key_pub.strip()),
        host_key=spec.keys.host_key,
        host_key_pub=spec.keys.host_key_pub,
        user_data=vm.template.user_data,
    )


def _check_template(template: VmTemplate) -> None:
    if shutil.which(template.qemu_bin, path=run.PATH) is None:
        raise GuestError(
            f"template {template.name}: there is no {template.qemu_bin} on this node",
            hint="install QEMU (Debian: qemu-system-x86), or set qemu-bin in the template",
        )
    wanted = {"image": template.disk.path if template.disk else None}
    if template.boot is not None:
        wanted |= {"kernel": template.boot.kernel, "initrd": template.boot.initrd}
    for what, path in wanted.items():
        if path is None:
            continue
        try:
            with open(path, "rb"):
                pass
        except OSError as err:
            raise GuestError(
                f"template {template.name}: its {what} cannot be read on this node",
                hint="images must be on a file system that every node mounts at the same place",
            ) from err
