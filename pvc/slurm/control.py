# SPDX-License-Identifier: Apache-2.0
"""What a node asks of Slurm's controller; run by root on compute nodes."""

from __future__ import annotations

from pvc.slurm.ask import ask


def read_node_jobs(node: str) -> set[int]:
    """The jobs that are, or are still completing, on a node (squeue(1)).

    Of a heterogeneous job it is the component ("%A"), and the first one ("%i", as 5+1) that stands for all.

    :raise JobError: the controller does not answer.
    """
    argv = ["squeue", "--noheader", "--all", "--local", f"--nodelist={node}", "--format", "%A %i"]
    text = ask(argv, f"ask Slurm for the jobs of {node}")
    return {int(word) for word in text.replace("+", " ").split() if word.isdecimal()}
