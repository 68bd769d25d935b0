# SPDX-License-Identifier: Apache-2.0
"""The options of the program of Slurm's that asks for a request."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from pvc.slurm.caller import Caller, read_caller

pytestmark = pytest.mark.allow_run


def ask(program: Path, *words: str) -> Caller | None:
    """What a process of this name and these words is seen as."""
    with subprocess.Popen([program, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"there\n"
            return read_caller(process.pid)
        finally:
            process.kill()


def make_program(path: Path) -> Path:
    """Something that stays, whatever its words are."""
    source = path.with_suffix(".c")
    source.write_text('#include <unistd.h>\nint main(void) { char c; write(1, "there\\n", 6); read(0, &c, 1); }\n')
    compiler = shutil.which("cc")
    assert compiler is not None
    subprocess.run([compiler, "-w", "-o", path, source], check=True)
    return path


@pytest.mark.parametrize(
    ("program", "words", "found"),
    [
        ("salloc", ("--pvc=a:4", "-N2", "--exclusive", "sh", "-c", "-p x"), ("--pvc=a:4", "-N2", "--exclusive")),
        ("salloc", ("-N", "2", "-m", "plane=2", "/bin/sh"), ("-N", "2", "-m", "plane=2")),
        ("srun", ("--distribution", "block,Pack", "true"), ("--distribution", "block,Pack")),
        ("sbatch", ("--exclusive=user", "job.sh", "-N9"), ("--partition=x", "-N3", "--exclusive=user")),
        ("sbatch", ("-N1", "no-such-script"), ("-N1",)),
    ],
)
def test_options_are_those_before_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, words: Sequence[str], found: Sequence[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.sh").write_text("#!/bin/sh\n#SBATCH --partition=x -N3\ntrue\n")
    assert ask(make_program(tmp_path / program), *words) == Caller(program, tuple(found))


def test_other_programs_say_nothing(tmp_path: Path) -> None:
    assert ask(make_program(tmp_path / "mysalloc"), "-N2") is None
    assert read_caller(os.getpid()) is None
    assert read_caller(1 << 22) is None
