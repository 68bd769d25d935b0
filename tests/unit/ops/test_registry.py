"""Directories of clusters, and which one a command means."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from pvc.errors import HostError, JobError
from pvc.ops.jobdir import JobDir, list_job_dirs
from pvc.ops.registry import _join_nodes, find_cluster, sweep
from pvc.slurm.job import QueuedJob
from tests.unit.ops.worlds import make_record


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", os.fspath(tmp_path))
    return tmp_path


def make(job_id: int, slurm_cluster: str | None = None) -> JobDir:
    """The directory of a cluster whose launcher was killed."""
    jobdir = JobDir.of(job_id)
    os.close(jobdir.create(slurm_cluster))
    jobdir.write_record(make_record(job_id=job_id))
    return jobdir


def queued(job_id: int) -> QueuedJob:
    return QueuedJob(job_id, "pvc", "RUNNING", "me", "0:01", "n1", "", "")


def test_a_directory_is_private_and_starts_empty() -> None:
    jobdir = make(7)
    assert jobdir.path.stat().st_mode & 0o777 == 0o700
    os.close(jobdir.create())
    assert [path.name for path in jobdir.path.iterdir()] == ["launcher.lock"]


def test_two_launchers_cannot_have_one_job() -> None:
    claim = JobDir.of(7).create()
    with pytest.raises(JobError, match="a cluster runs already in job 7"):
        JobDir.of(7).create()
    os.close(claim)
    os.close(JobDir.of(7).create())


def test_a_job_of_another_slurm_cluster_is_left_alone() -> None:
    make(7, "here")
    make(8, "there")
    make(9)
    assert sweep({}, lambda: "here") == ()
    assert [jobdir.path.name for jobdir in list_job_dirs()] == ["8"]


def test_a_link_in_its_place_is_not_followed(home: Path) -> None:
    target = home / "precious"
    target.mkdir()
    (target / "file").write_text("x")
    JobDir.of(7).path.parent.mkdir(parents=True)
    JobDir.of(7).path.symlink_to(target)
    os.close(JobDir.of(7).create())
    assert (target / "file").exists()
    assert not JobDir.of(7).path.is_symlink()


def test_a_file_in_the_place_of_all_directories(home: Path) -> None:
    (home / ".pvc").write_text("x")
    with pytest.raises((HostError, OSError)):
        JobDir.of(7).create()


def test_stale_directories_are_removed_and_nothing_else(home: Path) -> None:
    make(7)
    make(8)
    (home / ".pvc" / "jobs" / "notes").mkdir()
    assert [jobdir.path.name for jobdir in sweep({8: queued(8)})] == ["8"]
    assert sorted(path.name for path in (home / ".pvc" / "jobs").iterdir()) == ["8", "notes"]


def test_no_directory_at_all() -> None:
    assert list_job_dirs() == ()


def test_the_cluster_of_a_job() -> None:
    make(7)
    assert find_cluster(7, None, {}).job_id == 7
    assert find_cluster(None, None, {"SLURM_JOB_ID": "7"}).job_id == 7
    with pytest.raises(JobError, match="job 8 has no running cluster"):
        find_cluster(8, None, {"SLURM_JOB_ID": "7"})
    with pytest.raises(JobError, match="not 'other'"):
        find_cluster(7, "other", {})


@pytest.mark.parametrize("text", ["", "{}", "nonsense", '{"job_id": "x"}'])
def test_a_damaged_description(text: str) -> None:
    make(7).record_path.write_text(text)
    with pytest.raises(JobError, match="cannot read"):
        find_cluster(7, None, {})


def test_a_component_means_its_whole_cluster() -> None:
    jobdir = make(7)
    jobdir.write_record(replace(make_record(job_id=7), jobs=(7, 8)))
    make(9)
    assert find_cluster(8, None).job_id == 7
    assert find_cluster(7, None).job_id == 7
    with pytest.raises(JobError, match="job 6 has no running cluster"):
        find_cluster(6, None)


def test_nodes_of_a_heterogeneous_job_are_those_of_its_components() -> None:
    leader = replace(queued(7), nodes="n1")
    others = {8: replace(queued(8), nodes="n[2-3]", component=1), 9: replace(queued(9), nodes="n9", component=0)}
    assert _join_nodes(leader, {7: leader, **others}) == "n1,n[2-3]"
    waiting = {number: replace(each, nodes="") for number, each in others.items()}
    assert _join_nodes(replace(leader, nodes=""), waiting) == ""
