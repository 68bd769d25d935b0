# SPDX-License-Identifier: Apache-2.0
"""Jobs whose nodes Slurm wants for others, and how long they keep them: slurm.conf(5), PreemptMode and GraceTime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pvc.slurm.ask import ask
from pvc.slurm.clock import read_clock
from pvc.slurm.job import SQUEUE, is_live, parse_moment, read_partitions

# squeue(1), --Format: none of these holds a blank. The number is a width, and what is longer would be cut.
_FORMAT = "JobID:24 ,State:24 ,PreemptTime:24 ,EndTime:24 ,Partition:256"


@dataclass(frozen=True)
class Preempted:
    """A job that was told to go; ``moment``: when, ``end``: by when, both by the clock of Slurm's controller.

    ``end`` None: it has no limit, or Slurm does not show it; ``runs``: it has not gone yet.
    """

    job_id: int
    runs: bool
    moment: float
    end: float | None
    partition: str


@dataclass(frozen=True)
class Grace:
    """A job that was told to go and has not gone; ``left_s``: how long it may stay, None: nobody says."""

    left_s: float | None


def read_preempted(job_id: int) -> tuple[Preempted, ...]:
    """Of a job, or of the components of a heterogeneous one, those that were told to go.

    :raise JobError: Slurm knows no such job, or does not answer.
    """
    argv = [*SQUEUE, "--states=all", f"--jobs={job_id}", f"--Format={_FORMAT}"]
    return parse_preempted(ask(argv, f"ask Slurm whether job {job_id} was preempted"))


def parse_preempted(text: str) -> tuple[Preempted, ...]:
    """What ``read_preempted`` is told: a line for each job; the moment of one that may stay is no number."""
    found = []
    for line in text.splitlines():
        words = line.split()
        moment = parse_moment(words[2]) if len(words) == 5 and words[0].isdecimal() else None
        if moment is not None:
            found.append(Preempted(int(words[0]), is_live(words[1]), moment, parse_moment(words[3]), words[4]))
    return tuple(found)


def find_grace(job_id: int) -> Grace | None:
    """The grace that a job, or a component of it, has; None: it was not told to go, or it has ended.

    :raise JobError: Slurm does not answer.
    """
    told = read_preempted(job_id)
    if not told or not all(each.runs for each in told):
        return None
    return plan_grace(told, {each.name: each.grace_s for each in read_partitions()}, read_clock())


def plan_grace(told: Sequence[Preempted], graces: Mapping[str, float], now: float) -> Grace | None:
    """The shortest grace of these, by the ``graces`` of their partitions; None: theirs are over, so they were told
    something else since then. A job that was suspended for another, and resumed, is one.
    """
    found: list[Grace] = []
    for each in told:
        grace_s = graces.get(each.partition)
        # Slurm does not show the end of a job without a limit, so it is reckoned. A QOS may have the grace, too.
        ends = [moment for moment in (each.end, each.moment + grace_s if grace_s else None) if moment is not None]
        left_s = min(ends) - now if ends else None
        if left_s is None or left_s > 0:
            found.append(Grace(left_s))
    return min(found, key=lambda each: each.left_s or 0.0) if found else None
