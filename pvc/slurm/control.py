"""What a node asks of Slurm's controller; run by root on compute nodes."""

from __future__ import annotations

import os
from collections.abc import Mapping

from pvc import run
from pvc.errors import HostError, JobError

_TIMEOUT_S = 15.0


def read_node_jobs(node: str) -> set[int]:
    """The jobs that are, or are still completing, on a node (squeue(1)).

    Of a heterogeneous job it is the component ("%A"), and the first one ("%i", as 5+1) that stands for all.

    :raise JobError: the controller does not answer.
    """
    try:
        text = run.run(["squeue", "-h", "-w", node, "-o", "%A %i"], env=_environment(), timeout_s=_TIMEOUT_S)
    except HostError as err:
        raise JobError(f"cannot ask Slurm for the jobs of {node}") from err
    return {int(word) for word in text.replace("+", " ").split() if word.isdigit()}


def _environment() -> Mapping[str, str]:
    slurm_conf = os.environ.get("SLURM_CONF")
    return {**run.BASE_ENV, **({"SLURM_CONF": slurm_conf} if slurm_conf else {})}
