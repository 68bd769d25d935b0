"""What Slurm's texts say of jobs."""

from __future__ import annotations

import pytest

from pvc.errors import JobError
from pvc.slurm.job import JobInfo, parse_fields, parse_queue, parse_reasons, read_components, read_job

ENVIRON = {"SLURM_JOB_ID": "12", "SLURM_JOB_NAME": "x", "SLURM_JOB_NODELIST": "n[1-3]"}
FULL = ENVIRON | {"SLURM_JOB_CPUS_PER_NODE": "2,1(x2)", "SLURM_MEM_PER_CPU": "512"}


def test_job_from_the_environment_alone() -> None:
    job = read_job(FULL)
    assert job == JobInfo(12, "x", ("n1", "n2", "n3"), (2, 1, 1), 512, None)
    assert job.vm_memory_mib(2, 5) == 1024


def test_memory_of_a_node_is_shared_by_its_vms() -> None:
    job = read_job(ENVIRON | {"SLURM_JOB_CPUS_PER_NODE": "4(x3)", "SLURM_MEM_PER_NODE": "4096"})
    assert job.vm_memory_mib(1, 4) == 1024


def test_no_limit_of_memory() -> None:
    assert JobInfo(1, "x", ("n1",), (1,), None, None).vm_memory_mib(1, 1) is None


def test_outside_a_job() -> None:
    with pytest.raises(JobError, match="not inside a Slurm job"):
        read_job({})


@pytest.mark.parametrize("change", [{"SLURM_JOB_NODELIST": "n["}, {"SLURM_JOB_CPUS_PER_NODE": "x"}])
def test_environment_that_cannot_be_read(change: dict[str, str]) -> None:
    with pytest.raises(JobError, match="cannot be read"):
        read_job(FULL | change)


def test_fields_of_scontrol() -> None:
    text = "JobId=12 JobName=a b JobState=RUNNING TRES=cpu=4,mem=400M,node=3 MinMemoryCPU=100M Comment=x=y"
    fields = parse_fields(text)
    assert fields["JobState"] == "RUNNING"
    assert fields["TRES"] == "cpu=4,mem=400M,node=3"
    assert fields["Comment"] == "x=y"


def test_queue() -> None:
    rows = [
        "7|pvc|RUNNING|me|0:10|n[1-2]|None|pvc web:2|7+0",
        "8|pvc|RUNNING|me|0:10|n3|None|pvc web:2|7+1",
        "8|a|b|COMPLETED|me|0|n1|||8",
        "9|x|PENDING|me|0:00||Priority||9",
    ]
    jobs = parse_queue("\n".join(row.replace("|", "\x1f") for row in rows) + "\ngarbage\n")
    assert [(job.job_id, job.state, job.comment, job.component) for job in jobs] == [
        (7, "RUNNING", "pvc web:2", 0),
        (8, "RUNNING", "pvc web:2", 1),
        (9, "PENDING", "", 0),
    ]


def test_reasons_of_nodes() -> None:
    assert parse_reasons("n1\x1fnone\nn2\x1fpvc: no space, left\nn3\x1f\n") == {"n2": "pvc: no space, left"}


# As salloc of Slurm 22.05 sets it for "-n2 -c1 : -N2 -n3 -c2".
HET = {
    "SLURM_JOB_ID": "3",
    "SLURM_HET_SIZE": "2",
    "SLURM_JOB_ID_HET_GROUP_0": "3",
    "SLURM_JOB_NAME_HET_GROUP_0": "x",
    "SLURM_JOB_NODELIST_HET_GROUP_0": "n1",
    "SLURM_JOB_CPUS_PER_NODE_HET_GROUP_0": "2",
    "SLURM_MEM_PER_CPU_HET_GROUP_0": "100",
    "SLURM_JOB_ID_HET_GROUP_1": "4",
    "SLURM_JOB_NAME_HET_GROUP_1": "x",
    "SLURM_JOB_NODELIST_HET_GROUP_1": "n[2-3]",
    "SLURM_JOB_CPUS_PER_NODE_HET_GROUP_1": "4,2",
    "SLURM_MEM_PER_CPU_HET_GROUP_1": "200",
}


def test_components_of_a_heterogeneous_job() -> None:
    assert read_components(HET) == (
        JobInfo(3, "x", ("n1",), (2,), 100, None),
        JobInfo(4, "x", ("n2", "n3"), (4, 2), 200, None),
    )


def test_a_job_from_inside_a_heterogeneous_one_is_its_own() -> None:
    assert read_components(HET | FULL) == (read_job(FULL),)
