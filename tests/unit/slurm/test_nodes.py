# SPDX-License-Identifier: Apache-2.0
"""Slurm's node lists."""

from __future__ import annotations

import pytest

from pvc.slurm.nodes import expand_nodes, fold_names


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("n1", ("n1",)),
        ("n[1-3]", ("n1", "n2", "n3")),
        ("n[08-10],login", ("n08", "n09", "n10", "login")),
        ("zeta,alpha[2,5]", ("zeta", "alpha2", "alpha5")),
        ("n[3,1]", ("n3", "n1")),
        ("n[10-11,2,4-5]-x,n[9,8]", ("n10-x", "n11-x", "n2-x", "n4-x", "n5-x", "n9", "n8")),
        ("r[2,1]n[1-2]", ("r1n1", "r1n2", "r2n1", "r2n2")),
    ],
)
def test_order_is_as_written(text: str, names: tuple[str, ...]) -> None:
    assert expand_nodes(text) == names


@pytest.mark.parametrize("text", ["", "n[1-", "a,,b", "n[b-a]"])
def test_nonsense(text: str) -> None:
    with pytest.raises(ValueError, match="not a list of nodes"):
        expand_nodes(text)


def test_folding() -> None:
    assert fold_names(("vm0", "vm1", "vm2", "vm7")) == "vm[0-2,7]"
    assert fold_names(("vm3",)) == "vm3"
