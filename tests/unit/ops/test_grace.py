# SPDX-License-Identifier: Apache-2.0
"""Whether SIGTERM is the end."""

from __future__ import annotations

import time

import pytest

from pvc.errors import JobError
from pvc.ops.grace import GraceWatch
from pvc.ops.walltime import format_preemption
from pvc.slurm.preemption import Grace


def test_one_question_for_all_nodes_and_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    answers: list[Grace | None] = [Grace(40.0), Grace(30.0), None]
    asked, warned = [], []

    def find(job_id: int) -> Grace | None:
        asked.append(job_id)
        return answers.pop(0)

    watch = GraceWatch(7, warned.append, find)
    assert [watch.may_stay() for _ in range(3)] == [True] * 3
    now += 10
    assert watch.may_stay()
    now += 30
    assert not watch.may_stay()
    assert (asked, warned) == ([7, 7, 7], [40.0])


def test_slurm_that_does_not_answer() -> None:
    def find(job_id: int) -> Grace | None:
        raise JobError(f"cannot ask Slurm whether job {job_id} was preempted")

    warned: list[float | None] = []
    assert not GraceWatch(7, warned.append, find).may_stay()
    assert warned == []


def test_words() -> None:
    assert format_preemption(7, 90.0).startswith("job 7 and its VMs end in 1 min 30 s: Slurm wants its nodes")
    assert format_preemption(7, None).startswith("job 7 and its VMs end soon: Slurm wants its nodes")
