# SPDX-License-Identifier: Apache-2.0
"""Whether a cluster still runs, as Slurm says it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pvc.errors import EndedError, JobError, SuspendedError
from pvc.ops.jobdir import JobDir
from pvc.ops.pulse import Pulse, judge
from pvc.slurm.job import JobState
from tests.unit.ops.worlds import make_record


def states(*words: str) -> tuple[JobState, ...]:
    return tuple(JobState(7 + index, word, ("n1",), None) for index, word in enumerate(words))


@pytest.mark.parametrize("word", ["RUNNING", "STOPPED", "CONFIGURING", "RESIZING", "SIGNALING"])
def test_a_job_whose_processes_are_there_goes_on(word: str) -> None:
    judge(make_record(), states(word))


@pytest.mark.parametrize("word", ["CANCELLED", "COMPLETING", "TIMEOUT", "NODE_FAIL", "UNHEARD_OF"])
def test_whatever_else_slurm_says_is_the_end(word: str) -> None:
    with pytest.raises(EndedError, match=rf"^cluster 7 has ended; Slurm says of its job: {word}$"):
        judge(make_record(), states(word))


@pytest.mark.parametrize("word", ["PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT"])
def test_a_job_that_is_in_the_queue_again_is_told_as_such(word: str) -> None:
    with pytest.raises(EndedError, match=rf"put its job back into the queue \({word}\)$") as found:
        judge(make_record(), states(word))
    assert "pvc ps tells when it runs again" in (found.value.find_hint() or "")


def test_a_job_that_slurm_has_forgotten_has_ended() -> None:
    with pytest.raises(EndedError, match="does not know its job any more"):
        judge(make_record(), ())


def test_a_suspended_job_is_told_with_the_way_out() -> None:
    with pytest.raises(SuspendedError, match=r"^job 7 is suspended") as caught:
        judge(make_record(), states("SUSPENDED"))
    assert caught.value.find_hint() == "let it go on: scontrol resume 7"


def test_one_component_that_has_ended_is_enough() -> None:
    record = replace(make_record(), jobs=(7, 8))
    judge(record, states("RUNNING", "RUNNING"))
    with pytest.raises(EndedError):
        judge(record, states("RUNNING", "CANCELLED"))
    with pytest.raises(EndedError):
        judge(record, states("RUNNING"))


def test_slurm_is_asked_once_for_many_and_its_silence_is_no_end(tmp_path: Path) -> None:
    jobdir = JobDir(tmp_path)
    asked: list[int] = []

    def read(job_id: int) -> tuple[JobState, ...]:
        asked.append(job_id)
        return states("RUNNING")

    def fail(_: int) -> tuple[JobState, ...]:
        raise JobError("cannot ask Slurm")

    with pytest.raises(EndedError):
        Pulse(make_record(), jobdir, read).check()
    assert not asked
    jobdir.tls_key.touch()
    pulse = Pulse(make_record(), jobdir, read)
    for _ in range(5):
        pulse.check()
    assert asked == [7]
    Pulse(make_record(), jobdir, fail).check()
