# SPDX-License-Identifier: Apache-2.0
"""What Slurm says of nodes beside their state."""

from __future__ import annotations

from pvc.slurm.nodenames import parse_addresses

SAID = """\
NodeName=c1 Arch=x86_64 CoresPerSocket=8 CPUAlloc=0 NodeAddr=10.99.0.11 NodeHostName=n1 Version=22.05.8 State=IDLE
NodeName=c2 CoresPerSocket=8 NodeAddr=n2-data NodeHostName=n2 State=DOWN Reason=NodeAddr=10.0.0.1 NodeName=c3 [root]
"""


def test_addresses_of_nodes() -> None:
    assert parse_addresses(SAID) == {"c1": "10.99.0.11", "c2": "n2-data"}
    assert parse_addresses("Node c9 not found\n") == {}
