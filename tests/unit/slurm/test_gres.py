# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvc.model.host import GresPart, JobGres
from pvc.slurm.gres import parse_job_gres


def test_what_slurm_tells_of_a_job_and_its_node() -> None:
    text = "gpu:h100:2(IDX:0,2-3),nic:1(IDX:0),lic(CNT:2);gpu:a100:2(S:0-1),gpu:h100:2,nic:2,lic:4,disk:no_consume:4G"
    parts = (GresPart("gpu", "h100", (0, 2, 3)), GresPart("nic", "", (0,)), GresPart("lic", "", None))
    assert parse_job_gres(text) == JobGres(parts, {"gpu": 4, "nic": 2, "lic": 4, "disk": 0})


@pytest.mark.parametrize("detail", ["(IDX:N/A)", "(IDX:)", "(IDX:3-1)", "(CNT:1)", "(1/4)", ""])
def test_without_indices_it_is_only_counted(detail: str) -> None:
    assert parse_job_gres(f"gpu:1{detail};gpu:1") == JobGres((GresPart("gpu", "", None),), {"gpu": 1})


def test_nothing_given_and_nothing_there() -> None:
    assert parse_job_gres(";gpu:2") == JobGres((), {"gpu": 2})
    assert parse_job_gres(";") == JobGres((), {})


@pytest.mark.parametrize("text", ["", "gpu:1(IDX:0)", "gpu:1(IDX:0;gpu:1", ";gpu)", ",;", ";,gpu:1"])
def test_malformed(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no|is not"):
        parse_job_gres(text)


@given(st.text("gpu:1(IDX0-3,);", max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert all(part.name for part in parse_job_gres(text).given)
