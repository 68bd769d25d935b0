from __future__ import annotations

from dataclasses import replace

from pvc.model.vm import Mount, VmTemplate
from pvc.plan.expand import fill_template


def test_rank_and_job_are_filled_in() -> None:
    template = VmTemplate(
        "t", None, None, "nat", custom_args=("-device", "x,id=%{vm_rank}", "/jobs/%{job_id}/%{other}")
    )
    template = replace(template, mounts=(Mount("/scratch/%{vm_rank}", "/%{vm_rank}"),))
    assert fill_template(template, 3, 12).mounts == (Mount("/scratch/3", "/%{vm_rank}"),)
    assert fill_template(template, 3, 12).custom_args == ("-device", "x,id=3", "/jobs/12/%{other}")
