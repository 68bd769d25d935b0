# SPDX-License-Identifier: Apache-2.0
"""Warnings before a job's time is over."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest

from pvc.errors import JobError
from pvc.ops import walltime
from pvc.ops.walltime import Walltime, format_warning
from pvc.slurm.job import parse_moment


class Clock:
    """The hands of both clocks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "time", lambda: self.now)
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


class Job:
    """What Slurm says of a job."""

    def __init__(self, end: float | None, moments: Sequence[float]) -> None:
        self.end = end
        self.asked = 0
        self.warned: list[float] = []
        self.watch = Walltime(7, moments, self.warned.append, self.read)

    def read(self, job_id: int) -> float | None:
        assert job_id == 7
        self.asked += 1
        if self.end == -1:
            raise JobError("the controller does not answer")
        return None if self.end is None else self.end - time.time()

    def go(self, clock: Clock, until: float, step: float = 5.0) -> None:
        while clock.now < until:
            clock.now += step
            self.watch.tick()
            if self.watch._asking is not None:
                self.watch._asking.join()
            self.watch.tick()


def test_each_moment_once(clock: Clock) -> None:
    job = Job(2000.0, (60.0, 600.0))
    job.go(clock, 1300)
    assert job.warned == []
    job.go(clock, 2100)
    assert [round(left) for left in job.warned] == [600, 60]
    assert job.asked <= 8


def test_a_job_that_begins_too_late_for_a_warning(clock: Clock) -> None:
    job = Job(1200.0, (600.0, 60.0))
    job.go(clock, 1300)
    assert [round(left) for left in job.warned] == [60]


def test_a_limit_that_was_raised_in_time(clock: Clock) -> None:
    job = Job(2000.0, (600.0,))
    job.go(clock, 1390)
    job.end = 9000.0
    job.go(clock, 8000)
    assert job.warned == []
    job.go(clock, 8405)
    assert len(job.warned) == 1


def test_slurm_that_does_not_answer(clock: Clock) -> None:
    job = Job(2000.0, (600.0,))
    job.go(clock, 1100)
    job.end = -1
    job.go(clock, 1500)
    assert len(job.warned) == 1


def test_no_limit_no_warning(clock: Clock) -> None:
    job = Job(None, (600.0,))
    job.go(clock, 9000)
    assert job.warned == []


@pytest.mark.parametrize(
    ("left", "text"), [(600, "10 minutes"), (599.7, "10 minutes"), (61, "1 min 1 s"), (60, "1 minute"), (7.2, "7 s")]
)
def test_words(left: float, text: str) -> None:
    assert f"end in {text}:" in format_warning(7, left)


def test_slurms_moments() -> None:
    assert parse_moment("1795981890") == 1795981890.0
    assert [parse_moment(text) for text in ("Unknown", "NONE", "")] == [None, None, None]
    assert walltime.read_left
