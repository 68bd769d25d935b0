# SPDX-License-Identifier: Apache-2.0
"""Jobs that were told to make room."""

from __future__ import annotations

import pytest

from pvc.slurm.clock import parse_clock
from pvc.slurm.preemption import Grace, Preempted, parse_preempted, plan_grace

# What squeue 22.05 says: a job that may stay, one with a time of grace and no limit, one with a limit, one that
# went, one whose nodes have not all answered to the signal.
SAID = """\
8                        RUNNING                  N/A                      NONE                     debug
7                        RUNNING                  1796048605               NONE                     low
6                        RUNNING                  1796048600               1796048620               low
5                        PREEMPTED                1796048500               1796048515               low
4                        SIGNALING                1796048605               NONE                     low
"""


def test_what_squeue_says() -> None:
    assert parse_preempted(SAID) == (
        Preempted(7, True, 1796048605.0, None, "low"),
        Preempted(6, True, 1796048600.0, 1796048620.0, "low"),
        Preempted(5, False, 1796048500.0, 1796048515.0, "low"),
        Preempted(4, True, 1796048605.0, None, "low"),
    )
    assert parse_preempted("") == ()


@pytest.mark.parametrize(
    ("end", "grace_s", "found"),
    [
        (None, 30.0, Grace(20.0)),  # reckoned by the partition's
        (1015.0, 30.0, Grace(5.0)),  # its time is over before
        (1015.0, 0.0, Grace(5.0)),  # the grace is of the job's QOS
        (None, 0.0, Grace(None)),
        (None, 5.0, None),  # long ago: it was suspended then
        (1005.0, 30.0, None),
    ],
)
def test_how_long_a_job_may_stay(end: float | None, grace_s: float, found: Grace | None) -> None:
    told = (Preempted(7, True, 1000.0, end, "low"),)
    assert plan_grace(told, {"low": grace_s}, 1010.0) == found


def test_the_component_that_goes_first_counts() -> None:
    told = (Preempted(7, True, 1000.0, None, "low"), Preempted(8, True, 1000.0, 1015.0, "low"))
    assert plan_grace(told, {"low": 30.0}, 1010.0) == Grace(5.0)


def test_the_controllers_clock() -> None:
    assert parse_clock("Configuration data as of 1796048605\nAccountingStorageBackupHost = (null)\n") == 1796048605.0
    assert parse_clock("slurm_load_ctl_conf error: Unable to contact slurm controller\n") is None
