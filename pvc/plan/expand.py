"""%{vm_rank} and %{job_id}: what a template cannot know before one of its VMs starts."""

from __future__ import annotations

from dataclasses import replace

from pvc.model.vm import VmTemplate


def fill_template(template: VmTemplate, rank: int, job_id: int) -> VmTemplate:
    """The template of one VM."""
    return replace(
        template,
        custom_args=tuple(fill(word, rank, job_id) for word in template.custom_args),
        drives=tuple(replace(each, path=fill(each.path, rank, job_id)) for each in template.drives),
        mounts=tuple(replace(each, source=fill(each.source, rank, job_id)) for each in template.mounts),
    )


def fill(text: str, rank: int, job_id: int) -> str:
    """``text`` for one VM."""
    return text.replace("%{vm_rank}", str(rank)).replace("%{job_id}", str(job_id))
