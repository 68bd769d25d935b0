# SPDX-License-Identifier: Apache-2.0
"""The memory that VMs get of what their job has."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pvc.errors import JobError
from pvc.model.vm import Accel
from pvc.ops.definition import LaunchOrder
from pvc.ops.describe import _find_memory_mib, place_vms
from pvc.slurm.job import JobInfo
from tests.unit.plan.worlds import request_of

WHOLE = JobInfo(7, "pvc", ("n1", "n2"), (16, 16), None, 4096)
SHARED = JobInfo(7, "pvc", ("n1", "n2"), (3, 1), 1000, None)


def memory_of(job: JobInfo, count: int, *wanted: int | None) -> tuple[int, ...]:
    request = request_of(("nat", count), cpus=1)
    order = LaunchOrder("x", request, (), {}, Accel.TCG, memory_mib=wanted)
    return _find_memory_mib(order, (job,), place_vms((job,), request))


@pytest.mark.parametrize(
    ("job", "count", "wanted", "found"),
    [
        (WHOLE, 4, (2000,), (2000,)),
        (WHOLE, 4, (None,), (2048,)),
        (WHOLE, 4, (), (2048,)),
        (SHARED, 4, (1000,), (1000,)),
        (SHARED, 4, (), (1000,)),
        # Slurm gave each VM a CPU more, for there is a limit of memory for each CPU (MaxMemPerCPU).
        (replace(SHARED, cpus=(6, 2)), 4, (2000,), (2000,)),
        (replace(WHOLE, memory_per_node_mib=None), 4, (9000,), (9000,)),
    ],
)
def test_what_was_wished_comes_first(job: JobInfo, count: int, wanted: Any, found: tuple[int, ...]) -> None:
    assert memory_of(job, count, *wanted) == found


def test_more_than_the_job_has_on_a_node_is_refused() -> None:
    with pytest.raises(JobError, match="has 4096 MiB of memory on n1, and its 3 VMs need 6000 MiB") as caught:
        memory_of(WHOLE, 5, 2000)
    assert "-N" in (caught.value.find_hint() or "")
