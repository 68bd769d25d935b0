# SPDX-License-Identifier: Apache-2.0
"""The program of Slurm's whose plug-in asks pvc for a request: only its own command line tells its options."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from pvc.errors import UsageError
from pvc.slurm.directives import read_directives
from pvc.slurm.installed import read_installed
from pvc.slurm.options import split_command

PROGRAMS = ("salloc", "sbatch", "srun")


@dataclass(frozen=True)
class Caller:
    """``words``: its options, of which the last one counts."""

    program: str
    words: tuple[str, ...]


def read_caller(pid: int) -> Caller | None:
    """What the process ``pid`` of this user was started with; None: it is no program of Slurm's, or has gone."""
    try:
        argv = [os.fsdecode(word) for word in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1]]
    except OSError:
        return None
    program = os.path.basename(argv[0]) if argv else ""
    if program not in PROGRAMS:
        return None
    try:
        found = split_command(argv[1:], lambda: read_installed(program))
        lines = read_directives(Path(found.rest[0])) if program == "sbatch" and found.rest else ()
    except UsageError:  # which that program says in its own words
        return None
    return Caller(program, (*lines, *found.slurm))
