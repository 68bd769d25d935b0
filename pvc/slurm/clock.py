# SPDX-License-Identifier: Apache-2.0
"""The time by the clock of Slurm's controller, whose moments Slurm tells: a machine's own may be minutes apart, for
Slurm's credentials allow that (munge(7): five minutes).
"""

from __future__ import annotations

import re
import time

from pvc.slurm.ask import ask
from pvc.slurm.job import read_end

_AS_OF = re.compile(r"^Configuration data as of (\d+)$", re.MULTILINE)


def read_clock() -> float:
    """Seconds since the epoch as the controller has them now, to a second; this machine's where it does not say.

    :raise JobError: Slurm does not answer.
    """
    return parse_clock(ask(["scontrol", "show", "config"], "ask Slurm for its time")) or time.time()


def parse_clock(text: str) -> float | None:
    """The moment at the top of what scontrol(1) shows of the configuration: when the controller gave it."""
    found = _AS_OF.search(text)
    return float(found[1]) if found else None


def read_left(job_id: int) -> float | None:
    """Seconds until Slurm ends a job; None: it has no limit.

    :raise JobError: Slurm does not know the job, or does not answer.
    """
    end = read_end(job_id)
    return None if end is None else end - read_clock()
