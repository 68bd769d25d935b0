# SPDX-License-Identifier: Apache-2.0
"""Whose program lets clusters past a node's own firewall."""

from __future__ import annotations

from pvc.plan.walls import Walls, open_port, open_way


def test_each_rule_is_for_the_program_that_keeps_it() -> None:
    walls = Walls("input", None, ("ip filter INPUT", "inet site in", "ip6 filter INPUT"), ("iptables-legacy",))
    assert open_port(walls.of(["ip"]), 4789) == (
        "iptables-legacy -I INPUT -p udp --dport 4789 -j ACCEPT; iptables -I INPUT -p udp --dport 4789 -j ACCEPT; "
        "nft insert rule inet site in udp dport 4789 accept"
    )
    assert open_port(walls.of(["ip6"]), 4789) == (
        "nft insert rule inet site in udp dport 4789 accept; ip6tables -I INPUT -p udp --dport 4789 -j ACCEPT"
    )


def test_clusters_pass_both_ways_by_their_group() -> None:
    assert open_way(Walls("forward", None, ("ip filter FORWARD",)), ["nat"], []) == (
        "iptables -I FORWARD -m devgroup --src-group 0x6fffffff -j ACCEPT; "
        "iptables -I FORWARD -m devgroup --dst-group 0x6fffffff -j ACCEPT"
    )
    assert open_way(Walls("forward", None, ("ip site fwd",)), ["nat"], []) == (
        "nft insert rule ip site fwd iifgroup 1879048191 accept; nft insert rule ip site fwd oifgroup 1879048191 accept"
    )


def test_firewalld_is_told_for_good() -> None:
    assert open_port(Walls("input", "internal"), 4790) == (
        "firewall-cmd --permanent --zone=internal --add-port=4790/udp; firewall-cmd --reload"
    )
    walls = Walls("forward", "public")
    assert open_way(walls, ["lab", "nat"], ["eth0", "lo"]) == (
        "firewall-cmd --permanent --zone=trusted --add-interface=lab+ --add-interface=nat+; firewall-cmd --reload"
    )
    assert "firewalld refuses" in walls.describe()


def test_the_nodes_own_devices_are_never_trusted_with_clusters() -> None:
    said = open_way(Walls("forward", "public"), ["et"], ["lo", "eth1", "eth0"])
    assert said is not None
    assert "firewall-cmd" not in said
    assert "eth0 begins with 'et', too" in said


def test_nobody_knows() -> None:
    assert open_port(Walls("input"), 4789) is None
    assert open_way(Walls("forward"), ["nat"], []) is None
    assert Walls("forward").describe() == ""
