"""What Slurm knows of a job that may have ended, and of its node: whether its processes can still be there."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence

from pvc import run
from pvc.errors import CommandError, HostError, JobError
from pvc.model.drive import Witness
from pvc.slurm.job import parse_fields
from pvc.slurm.nodes import expand_nodes

_TIMEOUT_S = 30.0
# scontrol(1): base states of a node in service, and flags that are nothing against it. All else means that nobody can
# be sure what still runs there.
_IN_SERVICE = {"IDLE", "ALLOCATED", "MIXED"}
_HARMLESS = {"DRAIN", "RESERVED", "PLANNED", "MAINTENANCE", "CLOUD", "DYNAMIC_NORM", "DYNAMIC_FUTURE"}


def read_witness(job_id: int, node: str) -> Witness:
    """What Slurm says now.

    :raise JobError: it does not answer.
    """
    job_state = _read_job_state(job_id, node)
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


def parse_job(text: str, node: str) -> str:
    """The state of a job on a node: scontrol's lines, one for each component of a heterogeneous job, leader first.

    A component ends by itself: while the leader goes on, and also after it.
    """
    jobs = [parse_fields(line) for line in text.splitlines() if line.strip()]
    here = [fields for fields in jobs if node in _find_nodes(fields)]
    return next((fields["JobState"] for fields in here or jobs if "JobState" in fields), "UNKNOWN")


def _find_nodes(fields: Mapping[str, str]) -> tuple[str, ...]:
    try:
        return expand_nodes(fields.get("NodeList", ""))
    except ValueError:
        return ()


def _read_job_state(job_id: int, node: str) -> str | None:
    """None: Slurm has forgotten the job."""
    try:
        text = _ask(["show", "job", str(job_id)])
    except JobError as err:
        if "Invalid job id" in str(err):
            return None
        raise
    return parse_job(text, node)


def _ask(words: list[str], ok_codes: Sequence[int] = (0,)) -> str:
    env = {**os.environ, "SLURM_TIME_FORMAT": "%s"}
    try:
        return run.run(["scontrol", "--oneliner", *words], env=env, timeout_s=_TIMEOUT_S, ok_codes=ok_codes)
    except CommandError as err:
        raise JobError(f"cannot ask Slurm: {err.stderr.strip() or err}") from None
    except HostError as err:
        raise JobError("cannot ask Slurm") from err
