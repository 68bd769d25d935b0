# SPDX-License-Identifier: Apache-2.0
"""Jobs of a federation's clusters: 26 bits of the number are a cluster's own, six above them tell which one it is."""

from __future__ import annotations

import pytest

from pvc.config.networks import MAX_SWITCH_PREFIX
from pvc.errors import JobError
from pvc.node.facts import parse_job_id
from pvc.node.setup import _check_group
from pvc.plan import names

# Of clusters 1, 4, 31 and 63; the last one is the largest that Slurm has.
JOBS = tuple((cluster << 26) + own for cluster in (1, 4, 31, 63) for own in (1, 67_108_861))


@pytest.mark.parametrize("job_id", JOBS)
def test_all_names_have_room(job_id: int) -> None:
    assert parse_job_id({"SLURM_JOB_ID": str(job_id)}) == job_id
    assert len(names.uplink("x" * names.MAX_PREFIX, job_id)) <= names.MAX_DEVICE
    assert len(names.port("x" * MAX_SWITCH_PREFIX, names.job_mark(job_id), 36**2 - 1)) <= names.MAX_DEVICE
    assert names.find_own({0: [names.port("pvc", names.job_mark(job_id), 7)]}, ["pvc"])
    assert 0 < names.link_group(job_id) < 1 << 31


@pytest.mark.parametrize("prefix", ["pvc", "x" * names.MAX_PREFIX])
def test_no_two_share_a_device(prefix: str) -> None:
    assert len({names.uplink(prefix, job_id) for job_id in JOBS}) == len(JOBS)
    assert len({names.job_mark(job_id) for job_id in JOBS}) == len(JOBS)


def test_jobs_whose_devices_would_go_together_are_not_on_one_node() -> None:
    job_id, twin = (1 << 26) + 7, (5 << 26) + 7
    _check_group(job_id, [(2 << 26) + 7, job_id + 1])
    with pytest.raises(JobError, match=rf"^job {twin} cannot be on this node beside job {job_id}: ") as caught:
        _check_group(twin, [job_id])
    assert caught.value.find_hint() is not None
