# SPDX-License-Identifier: Apache-2.0
"""How Slurm's programs are asked, whatever the user's environment and texts are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvc.errors import JobError
from pvc.slurm.ask import environment, format_row, split_rows

PLAIN = environment({})
# Of the programs' manuals (ENVIRONMENT VARIABLES), and whatever may come
_NAMES = """
SQUEUE_PARTITION SQUEUE_STATES SQUEUE_FORMAT SQUEUE_ALL SQUEUE_SORT SINFO_FORMAT SINFO_ALL SLURM_TIME_FORMAT
SLURM_CLUSTERS SCANCEL_INTERACTIVE SCONTROL_ALL LC_ALL LANG TZ IFS SLURM_BITSTR_LEN SLURM_DEBUG_FLAGS PYTHONPATH
LD_PRELOAD TERM SLURM_TOPO_LEN
"""
NAMES = st.sampled_from(_NAMES.split()) | st.from_regex(
    r"(SQUEUE|SINFO|SCANCEL|SACCT|SALLOC|SBATCH|SRUN)_[A-Z_]{1,12}", fullmatch=True
)


@given(name=NAMES, value=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_nothing_of_the_users_changes_an_answer(name: str, value: str) -> None:
    assert environment({name: value}) == PLAIN


def test_which_slurm_it_is_goes_along(tmp_path: Path) -> None:
    conf = tmp_path / "slurm.conf"
    conf.touch()
    found = environment({"SLURM_CONF": os.fspath(conf), "PATH": "/opt/slurm/bin", "HOME": "/h"})
    assert (found["SLURM_CONF"], found["HOME"]) == (os.fspath(conf), "/h")
    assert found["PATH"].split(":")[:2] == ["/opt/slurm/bin", "/usr/local/sbin"]


@pytest.mark.parametrize("value", ["", "/nope", "/"])
def test_a_configuration_that_is_not_there_is_said_at_once(value: str) -> None:
    with pytest.raises(JobError, match="SLURM_CONF is"):
        environment({"SLURM_CONF": value})


WORD = "0123456789abcdef"
TEXTS = st.text() | st.sampled_from(["a\nb", "a\u2028b", "a\x85b", "\x1f", "|", "JobState=COMPLETED", "%j", "+.-", ""])


@given(rows=st.lists(st.lists(TEXTS.filter(lambda text: WORD not in text), min_size=3, max_size=3)))
def test_no_text_of_a_users_breaks_a_record(rows: list[list[str]]) -> None:
    said = "\n".join(format_row(row, WORD) for row in rows)  # as squeue prints it: each %-word replaced by its text
    assert split_rows(said, 3, WORD) == [tuple(row) for row in rows]


def test_a_record_that_is_cut_short_is_none() -> None:
    whole = format_row(["1", "x"], WORD)
    assert split_rows(f"{whole}\n{whole[:-3]}", 2, WORD) == [("1", "x")]
