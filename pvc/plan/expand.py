# SPDX-License-Identifier: Apache-2.0
"""%{vm_rank} and %{job_id}: what a template cannot know before one of its VMs starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from pvc.model.vm import Disk, Hooks, VmTemplate


def fill_template(template: VmTemplate, rank: int, job_id: int) -> VmTemplate:
    """The template of one VM."""
    return replace(
        template,
        custom_args=tuple(fill(word, rank, job_id) for word in template.custom_args),
        drives=tuple(replace(each, path=fill(each.path, rank, job_id)) for each in template.drives),
        mounts=tuple(replace(each, source=fill(each.source, rank, job_id)) for each in template.mounts),
        hooks=_fill_hooks(template.hooks, rank, job_id),
    )


def _fill_hooks(hooks: Hooks, rank: int, job_id: int) -> Hooks:
    def words(hook: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(fill(word, rank, job_id) for word in hook)

    return replace(
        hooks,
        before_start=words(hooks.before_start),
        reachable=words(hooks.reachable),
        before_stop=words(hooks.before_stop),
        after_stop=words(hooks.after_stop),
    )


def find_image_files(template: VmTemplate) -> tuple[str, ...]:
    """The files of images that the VM reads from, each once."""
    disks = [template.disk, *(each.base for each in template.disks)]
    found = [each.path for disk in disks if disk is not None for each in disk.files]
    if template.boot is not None:
        found += [path for path in (template.boot.kernel, template.boot.initrd) if path is not None]
    return tuple(dict.fromkeys(found))


def localize(template: VmTemplate, copies: Mapping[str, str]) -> VmTemplate:
    """The template with copies in place of files of images."""

    def near(path: str) -> str:
        return copies.get(path, path)

    def move(disk: Disk | None) -> Disk | None:
        if disk is None:
            return None
        return replace(
            disk, path=near(disk.path), below=tuple(replace(each, path=near(each.path)) for each in disk.below)
        )

    boot = template.boot
    if boot is not None:
        boot = replace(boot, kernel=near(boot.kernel), initrd=near(boot.initrd) if boot.initrd is not None else None)
    disks = tuple(replace(each, base=move(each.base)) for each in template.disks)
    return replace(template, disk=move(template.disk), disks=disks, boot=boot)


def fill(text: str, rank: int, job_id: int) -> str:
    """``text`` for one VM."""
    return text.replace("%{vm_rank}", str(rank)).replace("%{job_id}", str(job_id))
