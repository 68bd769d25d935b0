# SPDX-License-Identifier: Apache-2.0
"""Exit codes are read as each program's documentation has them: a warning is no failure."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pvc.host.exitcodes import EXIT_CODES, Outcome, explain, judge


@pytest.mark.parametrize("program", EXIT_CODES)
def test_the_table_is_whole(program: str) -> None:
    codes = EXIT_CODES[program]
    assert codes.source
    assert 0 not in codes.meanings
    assert codes.warnings <= codes.meanings.keys()
    assert judge(program, 0) is Outcome.DONE
    for code in codes.meanings:
        assert judge(program, code) is (Outcome.WARNED if code in codes.warnings else Outcome.FAILED)
        assert codes.meanings[code] in explain(program, code)


def test_what_is_in_no_table() -> None:
    assert [judge("nobody", code) for code in (0, 1, 2, -9)] == [Outcome.DONE, *[Outcome.FAILED] * 3]
    assert explain("gzip", -9) == "killed by SIGKILL"
    assert explain("gzip", -99) == "killed by signal 99"
    assert explain("gzip", 77) == explain("nobody", 77) == "exit code 77"


@pytest.mark.allow_run("the programs themselves")
@pytest.mark.parametrize(
    ("program", "behind", "wanted"),
    [
        ("gzip", b"", Outcome.DONE),
        ("gzip", bytes(512), Outcome.DONE),
        ("gzip", b"more", Outcome.WARNED),
        ("xz", b"", Outcome.DONE),
        ("xz", b"more", Outcome.FAILED),
        ("zstd", b"", Outcome.DONE),
        ("zstd", b"more", Outcome.FAILED),
    ],
)
def test_the_programs_do_so(tmp_path: Path, program: str, behind: bytes, wanted: Outcome) -> None:
    packed = subprocess.run([program, "-qc"], input=b"hello", capture_output=True, check=True).stdout
    done = subprocess.run([program, "-dc"], input=packed + behind, capture_output=True, check=False)
    assert done.stdout == b"hello"
    assert judge(program, done.returncode) is wanted
    done = subprocess.run([program, "-dc"], input=packed[:-2], capture_output=True, check=False)
    assert judge(program, done.returncode) is Outcome.FAILED
