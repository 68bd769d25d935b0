# SPDX-License-Identifier: Apache-2.0
"""Names of VMs."""

from __future__ import annotations

import pytest

from pvc.errors import UsageError
from pvc.ops.status import find_node, parse_vms
from tests.unit.ops.worlds import make_record


@pytest.mark.parametrize(
    ("words", "ranks"),
    [
        ((), ()),
        (("vm3",), (3,)),
        (("vm[0-2,9]", "vm1", "vm5"), (0, 1, 2, 5, 9)),
        (("vm1,vm2",), (1, 2)),
        (("vm[0-9]!vm[2-8]",), (0, 1, 9)),
    ],
)
def test_sets(words: tuple[str, ...], ranks: tuple[int, ...]) -> None:
    assert parse_vms(words, 10) == ranks


@pytest.mark.parametrize("word", ["vm10", "vm", "x1", "vm-1", "vm[0-", "vm99999999999", "", "vm٣", "vm[0-3]!vm[0-5]"])
def test_nonsense(word: str) -> None:
    with pytest.raises(UsageError):
        parse_vms((word,), 10)


def test_node_of_a_vm() -> None:
    assert [find_node(make_record(), rank) for rank in range(3)] == ["n1", "n1", "n2"]
