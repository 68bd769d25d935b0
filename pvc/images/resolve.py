"""From a template that names an image to one that names files."""

from __future__ import annotations

from pvc.images.image import Image
from pvc.images.repository import Repositories
from pvc.images.store import Store
from pvc.model.site import Template
from pvc.model.vm import DirectBoot, Disk, VmTemplate


def resolve_template(template: Template, repositories: Repositories) -> VmTemplate:
    """All that a supervisor needs of ``template``; the image is looked up now, so all VMs get one revision.

    :raise UsageError: no repository has the image.
    :raise GuestError: the image is damaged.
    :raise HostError: a repository cannot be read.
    """
    disk: Disk | None = None
    boot: DirectBoot | None = None
    if template.image is not None:
        found = repositories.locate(template.image)
        repositories.verify(found)
        store = repositories.store(found.repository)
        disk = Disk(str(store.blob_path(found.image.disk)), found.image.format.value, found.image.size)
        boot = _find_boot(found.image, store)
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
        qemu_bin=template.qemu_bin,
        custom_args=template.custom_args,
    )


def _find_boot(image: Image, store: Store) -> DirectBoot | None:
    if image.kernel is None:
        return None
    initrd = str(store.blob_path(image.initrd)) if image.initrd else None
    return DirectBoot(str(store.blob_path(image.kernel)), initrd, image.append)
