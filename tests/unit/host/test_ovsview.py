# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pvc.host.ovsview import parse_flows

SAID = """OFPST_FLOW reply (OF1.5) (xid=0x2):
 cookie=0xc, duration=4.1s, table=0, n_packets=7, n_bytes=700, idle_age=4, priority=50,in_port="pvc-vx4789",\
tun_id=0x454 actions=set_field:1108->metadata,goto_table:5
 cookie=0xc, duration=4.1s, table=4, n_packets=1, n_bytes=100, priority=50,metadata=0x454,dl_dst=52:54:00:00:00:03 \
actions=set_field:0x454->tun_id,output:"pvc-vx4789"
 cookie=0xc, duration=4.1s, table=2, n_packets=0, n_bytes=0, metadata=0x454 actions=drop
"""


def test_flows_are_read() -> None:
    came, went, rest = parse_flows(SAID)
    assert (came.table, came.packets, came.bytes) == (0, 7, 700)
    assert came.match == 'priority=50,in_port="pvc-vx4789",tun_id=0x454'
    assert (went.table, went.match) == (4, "priority=50,metadata=0x454,dl_dst=52:54:00:00:00:03")
    assert went.actions.startswith("set_field:0x454->tun_id")
    assert (rest.table, rest.match, rest.actions) == (2, "metadata=0x454", "drop")


def test_nothing_is_no_flow() -> None:
    assert parse_flows("") == ()
    assert parse_flows("ovs-ofctl: pvc-ovs is not a bridge or a socket\n") == ()
