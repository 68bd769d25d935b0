"""From a template that names an image to one that names files."""

from __future__ import annotations

from dataclasses import replace

from pvc.errors import UsageError
from pvc.images.image import Image
from pvc.images.repository import Repositories
from pvc.images.store import Store
from pvc.model.site import DiskWish, Template
from pvc.model.vm import DirectBoot, Disk, DiskFile, ExtraDisk, Restart, VmTemplate


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
    return VmTemplate(
        name=template.name,
        disk=disk,
        boot=boot,
        resource_set=template.resource_set,
        user_data=template.user_data,
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
    path = str(store.blob_path(found.image.disk))
    below = tuple(DiskFile(str(store.blob_path(each.blob)), each.format.value) for each in found.image.below)
    disk = Disk(path, found.image.format.value, size or found.image.size, below, found.uri)
    return disk, _find_boot(found.image, store)


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
