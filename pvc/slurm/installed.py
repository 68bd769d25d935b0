# SPDX-License-Identifier: Apache-2.0
"""The options of the Slurm that is installed here."""

from __future__ import annotations

from pvc.errors import JobError
from pvc.slurm.options import Table, parse_help


def read_installed(program: str) -> Table:
    """The long options of salloc or sbatch, those of the site's plug-ins included; nothing where it cannot be asked."""
    # Some 60 ms: only options that are not known ask.
    from pvc.slurm.ask import ask

    try:
        return parse_help(ask([program, "--help"], f"see the options of {program}"))
    except JobError:
        return {}
