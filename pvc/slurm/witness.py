# SPDX-License-Identifier: Apache-2.0
"""What Slurm knows of a job that may have ended, and of its node: whether its processes can still be there."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pvc.model.drive import Witness
from pvc.slurm.ask import ask
from pvc.slurm.job import JobState, parse_fields, read_states

# scontrol(1): base states of a node in service, and flags that are nothing against it. All else means that nobody can
# be sure what still runs there.
_IN_SERVICE = {"IDLE", "ALLOCATED", "MIXED"}
_HARMLESS = {"DRAIN", "RESERVED", "PLANNED", "MAINTENANCE", "CLOUD", "DYNAMIC_NORM", "DYNAMIC_FUTURE"}


def read_witness(job_id: int, node: str) -> Witness:
    """What Slurm says now.

    :raise JobError: it does not answer.
    """
    job_state = find_state(read_states(job_id), node)
    # A node that Slurm does not know is told on standard output, with exit code 1.
    text = ask(["scontrol", "--oneliner", "show", "node", node], f"ask Slurm for node {node}", ok_codes=(0, 1))
    return Witness(job_state, *parse_node(text))


def parse_node(text: str) -> tuple[bool, float | None]:
    """Whether a node is in service and answers, and when it booted: scontrol's line with times as seconds."""
    fields = parse_fields(text)
    base, *flags = re.split(r"[+]", fields.get("State", "UNKNOWN"))
    answers = base in _IN_SERVICE and _HARMLESS.issuperset(flags)
    try:
        return answers, float(fields["BootTime"])
    except (KeyError, ValueError):
        return answers, None


def find_state(jobs: Sequence[JobState], node: str) -> str | None:
    """The state of a job on a node; of a heterogeneous job each component has one, leader first. None: no such job.

    A component ends by itself: while the leader goes on, and also after it.
    """
    here = [each for each in jobs if node in each.nodes]
    return next((each.state for each in here or jobs), None)
