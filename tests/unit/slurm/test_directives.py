# SPDX-License-Identifier: Apache-2.0
"""Lines of scripts that sbatch takes for options."""

from __future__ import annotations

from pathlib import Path

import pytest

from pvc.errors import UsageError
from pvc.slurm.directives import parse_directives, read_directives

SCRIPT = """#!/bin/bash
#SBATCH -p fast --time=10   # the queue
# SBATCH --not-this
#SBATCHES --nor-this
##SBATCH --nor-this

#SBATCH\t--comment="two words" --mail-user='a b'
echo x
#SBATCH --time=20
"""


def test_as_sbatch_reads_them(tmp_path: Path) -> None:
    words = ("-p", "fast", "--time=10", "--comment=two words", "--mail-user=a b")
    assert tuple(parse_directives(SCRIPT, "x")) == words
    path = tmp_path / "x"
    path.write_text(SCRIPT)
    assert read_directives(path) == words


@pytest.mark.parametrize("content", [b"", b"\x7fELF\n#SBATCH -x\n", b"#SBATCH -x\n", None])
def test_what_is_no_script_has_none(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "x").write_bytes(content)
    assert read_directives(tmp_path / "x") == ()


def test_an_open_quotation_is_told_with_its_line() -> None:
    with pytest.raises(UsageError, match="x:2: #SBATCH --comment='a: No closing quotation"):
        list(parse_directives("#!/bin/sh\n#SBATCH --comment='a\n", "x"))
