# SPDX-License-Identifier: Apache-2.0
"""What Slurm's texts say of jobs."""

from __future__ import annotations

import pytest

from pvc.errors import JobError
from pvc.slurm import job as slurm_job
from pvc.slurm.job import (
    JobInfo,
    JobState,
    has_ended,
    parse_fields,
    parse_queue,
    parse_reasons,
    parse_states,
    read_components,
    read_job,
)

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
        "8|ab|COMPLETED|me|0|n1|||8",
        "x|ab|RUNNING|me|0|n1|||8",
        "9|x|PENDING|me|0:00||Priority||9",
    ]
    jobs = parse_queue([row.split("|") for row in rows])
    assert [(job.job_id, job.state, job.comment, job.component) for job in jobs] == [
        (7, "RUNNING", "pvc web:2", 0),
        (8, "RUNNING", "pvc web:2", 1),
        (9, "PENDING", "", 0),
    ]


def test_jobs_that_a_federation_has_in_several_clusters() -> None:
    """The cluster that took a job in keeps a line of it, revoked, while another runs it; all have those that wait."""
    rows = [
        ("7", "REVOKED", "", "NONE"),
        ("7", "RUNNING", "n2", "NONE"),
        ("8", "RUNNING", "n1", "9"),
        ("8", "REVOKED", "", ""),
    ]
    assert parse_states(rows) == (JobState(7, "RUNNING", ("n2",), None), JobState(8, "RUNNING", ("n1",), 9.0))
    (lost,) = parse_states(rows[:1])
    assert not lost.has_ended
    assert not lost.waits
    queue = [
        "7|pvc|REVOKED|me|0:00||None|pvc web:2|7",
        "7|pvc|RUNNING|me|0:10|n2|None|pvc web:2|7",
        "9|pvc|PENDING|me|0:00||Priority|pvc web:2|9",
        "9|pvc|PENDING|me|0:00||Resources|pvc web:2|9",
    ]
    jobs = parse_queue([row.split("|") for row in queue])
    assert [(job.job_id, job.state, job.nodes) for job in jobs] == [(7, "RUNNING", "n2"), (9, "PENDING", "")]


def test_reasons_of_nodes() -> None:
    rows = [("n1", "none"), ("n2", "pvc: no space,\nleft"), ("n3", "")]
    assert parse_reasons(rows) == {"n2": "pvc: no space,\nleft"}


@pytest.mark.parametrize("state", ["RUNNING", "SUSPENDED", "STOPPED", "SIGNALING", "RESIZING"])
def test_a_job_that_is_suspended_has_not_ended(state: str) -> None:
    assert JobState(7, state, (), None).holds_nodes
    assert not JobState(7, state, (), None).has_ended


@pytest.mark.parametrize(
    "state", ["PENDING", "COMPLETING", "COMPLETED", "CANCELLED", "NODE_FAIL", "REQUEUED", "PREEMPTED"]
)
def test_a_job_that_has_no_nodes_or_leaves_them(state: str) -> None:
    assert not JobState(7, state, (), None).holds_nodes


def test_states() -> None:
    rows = [("8", "RUNNING", "n[2-3]", "NONE"), ("7", "COMPLETING", "", "1795981890"), ("", "x", "n[", "x")]
    assert parse_states(rows) == (
        JobState(7, "COMPLETING", (), 1795981890.0),
        JobState(8, "RUNNING", ("n2", "n3"), None),
    )


@pytest.mark.parametrize(
    ("states", "ended"),
    [
        (("COMPLETED",), True),
        (("CANCELLED", "NODE_FAIL"), True),
        ((), True),
        (("COMPLETED", "RUNNING"), False),
        (("COMPLETING",), False),
        (("SUSPENDED",), False),
        (("SOMETHING_NEW",), False),
    ],
)
def test_only_what_is_known_to_have_ended_has(
    states: tuple[str, ...], ended: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = tuple(JobState(7 + number, state, (), None) for number, state in enumerate(states))
    monkeypatch.setattr(slurm_job, "read_states", lambda _job_id: found)
    assert has_ended(7) is ended


def test_memory_is_not_read_from_a_jobs_name(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "x TRES=cpu=1,mem=1M,node=1\nMinMemoryNode=1M"
    text = f"JobId=12 JobName={name} UserId=me(1) TRES=cpu=3,mem=3000M,node=3 Comment=TRES=mem=2M\n"
    monkeypatch.setattr(slurm_job, "ask", lambda _argv, _what: text)
    job = read_job(ENVIRON | {"SLURM_JOB_NAME": name, "SLURM_JOB_CPUS_PER_NODE": "1(x3)"})
    assert job.memory_per_node_mib == 1000


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
