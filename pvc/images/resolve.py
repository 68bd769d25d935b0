# SPDX-License-Identifier: Apache-2.0
"""From a template that names an image to one that names files."""

from __future__ import annotations

from dataclasses import replace

from pvc.errors import UsageError
from pvc.images.image import Image
from pvc.images.repository import Repositories
from pvc.images.store import Store
from pvc.model.site import DiskWish, Template
from pvc.model.vm import KERNEL_APPEND, DirectBoot, Disk, DiskFile, ExtraDisk, Restart, VmTemplate


def resolve_template(template: Template, repositories: Repositories) -> VmTemplate:
    """All that a supervisor needs of ``template``; the image is looked up now, so all VMs get one revision.

    :raise UsageError: no repository has the image.
    :raise GuestError: the image is damaged.
    :raise HostError: a repository cannot be read.
    """
    disk: Disk | None = None
    boot: DirectBoot | None = None
    if template.image is not None:
        disk, boot = _find_disk(template.image, template.disk_size, repositories)
    if template.kernel is not None:
        boot = DirectBoot(template.kernel, None, boot.append if boot is not None else KERNEL_APPEND)
    return VmTemplate(
        name=template.name,
        disk=disk,
        boot=boot,
        resource_set=template.resource_set,
        user_data=template.user_data,
        instance_id=template.instance_id,
        machine_type=template.machine_type,
        cpu_model=template.cpu_model,
        nic_model=template.nic_model,
        disk_model=template.disk_model,
        disk_cache=template.disk_cache,
        restart=Restart(template.restart),
        disk_discard=template.disk_discard,
        disk_iothread=template.disk_iothread,
        disk_aio=template.disk_aio,
        disks=tuple(_resolve_disk(wish, repositories) for wish in template.disks),
        drives=template.persistent_drives,
        firmware=template.firmware,
        tpm=template.tpm,
        hugepages=template.hugepages,
        mounts=tuple(
            each if each.tag else replace(each, tag=f"pvc{i}") for i, each in enumerate(template.mount_points)
        ),
        qemu_bin=template.qemu_bin,
        custom_args=template.custom_args,
        remote_display=template.remote_display,
        hypervisor=template.hypervisor,
        hooks=template.hooks,
    )


def _find_disk(image: str, size: int | None, repositories: Repositories) -> tuple[Disk, DirectBoot | None]:
    """The disk of an image, made as large as ``size`` if that is given.

    :raise UsageError: no repository has the image, or it is larger.
    """
    found = repositories.locate(image)
    repositories.verify(found)
    store = repositories.store(found.repository)
    if size is not None and size < found.image.size:
        raise UsageError(
            f"a disk of {size} bytes is too small for image {found.uri}, which has {found.image.size}",
            hint="leave the size out, or give a larger one: disks only grow",
        )
    return name_files(store, found.image, size), _find_boot(found.image, store)


def name_files(store: Store, image: Image, size: int | None = None) -> Disk:
    """The disk of an image, by its files; ``size`` where it shall be larger."""
    path = str(store.blob_path(image.disk))
    below = tuple(DiskFile(str(store.blob_path(each.blob)), each.format.value) for each in image.below)
    return Disk(path, image.format.value, size or image.size, below, f"{store.name}:{image}")


def _resolve_disk(wish: DiskWish, repositories: Repositories) -> ExtraDisk:
    base = None if wish.image is None else _find_disk(wish.image, wish.size, repositories)[0]
    size = base.size if base is not None else wish.size
    assert size is not None
    return ExtraDisk(base, size, wish.bus, wish.cache, wish.discard, wish.iothread, wish.aio)


def _find_boot(image: Image, store: Store) -> DirectBoot | None:
    if image.kernel is None:
        return None
    initrd = str(store.blob_path(image.initrd)) if image.initrd else None
    return DirectBoot(str(store.blob_path(image.kernel)), initrd, image.append)
