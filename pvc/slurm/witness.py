"""What Slurm knows of a job that may have ended, and of its node: whether its processes can still be there."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from pvc import run
from pvc.errors import CommandError, HostError, JobError
from pvc.model.drive import Witness
from pvc.slurm.job import parse_fields

_TIMEOUT_S = 30.0
# scontrol(1): base states of a node in service, and flags that are nothing against it. All else means that nobody can
# be sure what still runs there.
_IN_SERVICE = {"IDLE", "ALLOCATED", "MIXED"}
_HARMLESS = {"DRAIN", "RESERVED", "PLANNED", "MAINTENANCE", "CLOUD", "DYNAMIC_NORM", "DYNAMIC_FUTURE"}


def read_witness(job_id: int, node: str) -> Witness:
    """What Slurm says now.

    :raise JobError: it does not answer.
    """
    job_state = _read_job_state(job_id)
    # A node that Slurm does not know is told on standard output, with exit code 1.
    return Witness(job_state, *parse_node(_ask(["show", "node", node], ok_codes=(0, 1))))


def parse_node(text: str) -> tuple[bool, float | None]:
    """Whether a node is in service and answers, and when it booted: scontrol's line with times as seconds."""
    fields = parse_fields(text)
    base, *flags = re.split(r"[+]", fields.get("State", "UNKNOWN"))
    answers = base in _IN_SERVICE and _HARMLESS.issuperset(flags)
    try:
        return answers, float(fields["BootTime"])
    except (KeyError, ValueError):
        return answers, None


def _read_job_state(job_id: int) -> str | None:
    """None: Slurm has forgotten the job."""
    try:
        text = _ask(["show", "job", str(job_id)])
    except JobError as err:
        if "Invalid job id" in str(err):
            return None
        raise
    return parse_fields(text).get("JobState", "UNKNOWN")


def _ask(words: list[str], ok_codes: Sequence[int] = (0,)) -> str:
    env = {**os.environ, "SLURM_TIME_FORMAT": "%s"}
    try:
        return run.run(["scontrol", "--oneliner", *words], env=env, timeout_s=_TIMEOUT_S, ok_codes=ok_codes)
    except CommandError as err:
        raise JobError(f"cannot ask Slurm: {err.stderr.strip() or err}") from None
    except HostError as err:
        raise JobError("cannot ask Slurm") from err
