# SPDX-License-Identifier: Apache-2.0
"""Directories of clusters, and which one a command means."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest

from pvc.errors import EndedError, HostError, JobError
from pvc.files import remove_tree
from pvc.ops.jobdir import JobDir, check_jobs_dir, list_job_dirs
from pvc.ops.registry import _join_nodes, find_cluster, sweep
from pvc.slurm.job import JobState, QueuedJob
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
    assert sweep({}, lambda: "here", lambda _: True) == ()
    assert [jobdir.path.name for jobdir in list_job_dirs()] == ["8"]


def test_what_is_not_in_a_list_has_not_therefore_ended() -> None:
    """A list is what the user's environment, a partition or a federation leaves of it."""
    make(7)
    make(8)

    def ask(job_id: int) -> bool:
        if job_id == 8:
            raise JobError("the controller does not answer")
        return False

    assert [jobdir.path.name for jobdir in sweep({}, lambda: None, ask)] == ["7", "8"]
    assert len(list_job_dirs()) == 2


def test_a_directory_with_a_living_launcher_stays_whatever_slurm_says() -> None:
    claim = JobDir.of(7).create()
    JobDir.of(7).write_record(make_record(job_id=7))
    assert [jobdir.path.name for jobdir in sweep({}, lambda: None, lambda _: True)] == ["7"]
    os.close(claim)
    assert sweep({}, lambda: None, lambda _: True) == ()


def test_few_questions_at_a_time() -> None:
    for number in range(1, 21):
        make(number)
    asked: list[int] = []

    def ask(job_id: int) -> bool:
        asked.append(job_id)
        return True

    assert len(sweep({}, lambda: None, ask)) == 20 - len(asked)
    assert 1 <= len(asked) <= 10


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
    for call in (JobDir.of(7).create, check_jobs_dir):
        with pytest.raises(HostError, match=r"jobs is no place for clusters: .*\.pvc is not a directory$") as caught:
            call()
        assert "$HOME" in (caught.value.find_hint() or "")
    with pytest.raises(HostError, match="cannot read") as caught:
        list_job_dirs()


@pytest.mark.parametrize("part", [".pvc", ".pvc/jobs"])
def test_links_of_the_user_are_followed(home: Path, part: str) -> None:
    scratch = home / "scratch"
    scratch.mkdir()
    (home / part).parent.mkdir(exist_ok=True)
    (home / part).symlink_to("scratch/mine" if part == ".pvc" else "../scratch/mine")
    check_jobs_dir()
    os.close(JobDir.of(7).create())
    assert [each.path.name for each in list_job_dirs()] == ["7"]
    assert (scratch / "mine").stat().st_mode & 0o777 == 0o700
    assert len(list(scratch.rglob("launcher.lock"))) == 1
    JobDir.of(7).remove()
    assert list_job_dirs() == ()
    assert (home / part).is_symlink()


def test_links_that_lead_nowhere_or_are_not_the_users(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / ".pvc").symlink_to("/no/such/scratch")
    with pytest.raises(HostError, match=r"is a link to /no/such/scratch, and there is no /no/such$"):
        check_jobs_dir()
    (home / ".pvc").unlink()
    (home / "theirs").mkdir()
    (home / ".pvc").symlink_to("theirs")
    uid = os.geteuid()
    monkeypatch.setattr("os.geteuid", lambda: uid + 1)
    with pytest.raises(HostError, match=rf"is a link of uid {uid}, not of {uid + 1}$"):
        check_jobs_dir()


@pytest.mark.parametrize(
    ("number", "hint"),
    [
        (errno.EDQUOT, "free some space in your home"),
        (errno.ENOSPC, "free some space in your home"),
        (errno.EROFS, "let ~/.pvc be a link"),
        (errno.EACCES, "must be writable"),
    ],
)
def test_a_place_that_takes_nothing_is_told_with_the_way_out(
    home: Path, monkeypatch: pytest.MonkeyPatch, number: int, hint: str
) -> None:
    def refuse(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(HostError, match=rf"jobs is no place for clusters: {os.strerror(number)}$") as caught:
        check_jobs_dir()
    assert hint in (caught.value.find_hint() or "")
    assert list((home / ".pvc" / "jobs").iterdir()) == []


def test_what_cannot_be_removed_is_passed_over_with_a_word(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    del home
    make(7)
    make(8)

    def remove(path: Path) -> None:
        if path.name == "7":
            raise PermissionError(errno.EACCES, "Permission denied")
        remove_tree(path)

    monkeypatch.setattr("pvc.ops.jobdir.remove_tree", remove)
    assert sweep({}, lambda: None, lambda _: True) == ()
    assert [each.path.name for each in list_job_dirs()] == ["7"]
    assert "7, where job 7 had its cluster: Permission denied" in caplog.text
    with pytest.raises(HostError, match=r"cannot make .*/7: Permission denied$") as caught:
        JobDir.of(7).create()
    assert f"rm -rf {JobDir.of(7).path}" in (caught.value.find_hint() or "")


def test_nobody_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("pathlib.Path.home", fail)
    for call in (check_jobs_dir, list_job_dirs):
        with pytest.raises(HostError, match="nobody says where the home of uid"):
            call()


def test_a_job_that_has_ended_is_told_as_such(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    del home
    states = (JobState(7, "TIMEOUT", (), None),)
    monkeypatch.setattr("pvc.ops.registry.read_states", lambda _: states)
    with pytest.raises(EndedError, match=r"^cluster 7 has ended; Slurm says of its job: TIMEOUT$"):
        find_cluster(7, None)
    states = ()
    with pytest.raises(JobError, match=r"^job 7 has no running cluster$"):
        find_cluster(7, None)


def test_stale_directories_are_removed_and_nothing_else(home: Path) -> None:
    make(7)
    make(8)
    (home / ".pvc" / "jobs" / "notes").mkdir()
    assert [jobdir.path.name for jobdir in sweep({8: queued(8)}, ask_ended=lambda _: True)] == ["8"]
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


@pytest.mark.parametrize(
    ("state", "told"),
    [("RUNNING", "cluster 9 is still starting"), ("PENDING", "cluster 9 does not run yet: its job is pending")],
)
def test_a_cluster_that_is_still_to_come(monkeypatch: pytest.MonkeyPatch, state: str, told: str) -> None:
    others = (queued(3), replace(queued(8), comment="pvc a:1", component=1))
    coming = replace(queued(9), state=state, comment="pvc a:1", name="mine")
    monkeypatch.setattr("pvc.ops.registry.read_queue", lambda: (*others, coming))
    for name in (None, "mine"):
        with pytest.raises(JobError, match=f"^{told}$"):
            find_cluster(None, name, {})
    with pytest.raises(JobError, match=r"^no cluster of yours is called 'other'$"):
        find_cluster(None, "other", {})


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
