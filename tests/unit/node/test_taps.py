# SPDX-License-Identifier: Apache-2.0
"""Which taps a supervisor gets when one of its VMs starts again."""

from __future__ import annotations

import pytest

from pvc.errors import HostError
from pvc.model.node import Nic, NodeGrant, Tap, VmGrant
from pvc.node.daemon import find_taps
from pvc.state.ledger import Ready


def nic(tap_index: int) -> Nic:
    return Nic("net", "52:54:00:00:00:01", 1500, None, None, tap_index)


TAPS = tuple(Tap(f"tap{i}", "ns") for i in range(4))
READY = Ready(
    NodeGrant(
        12,
        "n1",
        "10.0.0.1",
        "/run/x",
        (VmGrant(4, (nic(0), nic(2)), {}), VmGrant(5, (nic(1), nic(3)), {}), VmGrant(6, (), {})),
    ),
    "ns",
    TAPS,
)


def test_each_vm_has_its_own() -> None:
    assert [tap.name for tap in find_taps(READY, 4)] == ["tap0", "tap2"]
    assert [tap.name for tap in find_taps(READY, 5)] == ["tap1", "tap3"]
    assert find_taps(READY, 6) == ()


@pytest.mark.parametrize("rank", [0, 7, -1, None, "4", [4], True, 4.0, {}])
def test_anything_else_is_refused(rank: object) -> None:
    with pytest.raises(HostError, match="job 12 has no such VM"):
        find_taps(READY, rank)
