# SPDX-License-Identifier: Apache-2.0
"""What every store must do; run over the memory store here and over a real etcd in tests/host."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from ipaddress import IPv4Network

import pytest

from pvc.errors import ConfigError, StateError
from pvc.state import membership
from pvc.state.membership import Member
from pvc.state.store import Absent, Delete, DeletePrefix, EmptyPrefix, Put, Store
from tests.unit.plan.worlds import BACK, NAT


def check_transactions(store: Store) -> None:
    assert store.transact([Absent("/a")], [Put("/a", "1"), Put("/b/1", "x")], ["/a", "/c"]).values == {"/a": "1"}
    refused = store.transact([Absent("/a")], [Put("/a", "2")], ["/a"])
    assert (refused.done, refused.values) == (False, {})
    assert not store.transact([EmptyPrefix("/b/")], [Delete("/a")]).done
    assert store.read_prefix("/") == {"/a": "1", "/b/1": "x"}
    assert store.transact([], [DeletePrefix("/b/")]).done
    assert store.transact([EmptyPrefix("/b/")], [Delete("/a"), Delete("/never")]).done
    assert store.read_prefix("/") == {}


def check_nodes_agree(store: Store) -> None:
    nodes = [f"n{number}" for number in range(12)]
    with ThreadPoolExecutor(6) as pool:
        grants = list(pool.map(lambda node: membership.join(store, 7, Member(node, "10.9.0.1"), [NAT, BACK]), nodes))
    assert all(grant == grants[0] for grant in grants)
    assert len(set(grants[0].values())) == 2
    for node in nodes[:-1]:
        membership.leave(store, 7, node)
    assert membership.join(store, 7, Member(nodes[0], "10.9.0.1"), [NAT, BACK]) == grants[0]
    for node in nodes:
        membership.leave(store, 7, node)
        membership.leave(store, 7, node)
    assert store.read_prefix(membership.ROOT) == {}


def check_nodes_that_differ(store: Store) -> None:
    """A node whose networks.yaml is another one would send into a network that is none."""
    assert membership.join(store, 8, Member("n1", "10.9.0.1"), [NAT])
    other = replace(NAT, int_network=IPv4Network("10.77.0.0/16"), mtu=1400)
    with pytest.raises(ConfigError) as found:
        membership.join(store, 8, Member("n2", "10.9.0.2"), [other])
    assert [each.key for each in found.value.problems] == ["nat.settings.int-network", "nat.settings.mtu"]
    assert "10.77.0.0/16 here, 10.200.0.0/16 on another node" in str(found.value)
    for node in ("n1", "n2"):
        membership.leave(store, 8, node)
    assert store.read_prefix(membership.ROOT) == {}


def check_jobs_never_share_a_vni(store: Store) -> None:
    tight = replace(NAT, min_vni=100, max_vni=119)
    with ThreadPoolExecutor(6) as pool:
        grants = list(
            pool.map(lambda job: membership.join(store, job, Member("n1", "10.9.0.1"), [tight])["nat"], range(1, 21))
        )
    assert sorted(grants) == list(range(100, 120))
    with pytest.raises(StateError, match="no VNI is free in 100-119"):
        membership.join(store, 21, Member("n1", "10.9.0.1"), [tight])
    membership.leave(store, 21, "n1")
    assert membership.read_jobs(store, "n1") == dict.fromkeys(range(1, 21), "10.9.0.1")
    assert membership.read_clusters(store)[3] == (("n1",), (grants[2],))
    assert membership.read_jobs(store, "n") == {}
    for job in range(1, 21):
        membership.leave(store, job, "n1")
    assert store.read_prefix(membership.ROOT) == {}


def check_sites_that_share_it(store: Store) -> None:
    """Two Slurm clusters that were given one prefix: neither takes the other's jobs, or nodes, for its own."""
    here, there = Member("n1", "10.9.0.1", "one"), Member("n1", "10.8.0.1", "two")
    membership.join(store, 9, here, [NAT])
    for other in (there, Member("n2", "10.8.0.2", "two")):
        with pytest.raises(StateError) as found:
            membership.join(store, 9, other, [NAT])
        assert "etcd-prefix" in (found.value.find_hint() or "")
    assert membership.join(store, 9, here, [NAT])["nat"]
    (noted,) = membership.read_jobs(store, "n1").values()
    assert here.is_mine(noted)
    assert not there.is_mine(noted)
    assert not Member("n1", "10.9.0.1", "two").is_mine(noted)
    # Of a step that came without its prolog, nobody knows the cluster.
    assert Member("n1", "10.9.0.1").is_mine(noted)
    for node in ("n1", "n2"):
        membership.leave(store, 9, node)
    assert store.read_prefix(membership.ROOT) == {}


def check_what_was_forgotten(store: Store) -> None:
    """A cluster that runs is registered again with the numbers that it has, unless another has them by now."""
    member, tight = Member("n1", "10.9.0.1"), replace(NAT, min_vni=100, max_vni=101)
    vnis = membership.join(store, 2, member, [tight])
    assert membership.find_forgotten(store, "n1", [2, 3]) == {3}
    keys = store.read_prefix(membership.ROOT)
    store.transact([], [DeletePrefix(membership.ROOT)])
    assert membership.find_forgotten(store, "n1", [2]) == {2}
    asked = []

    def restore() -> None:
        asked.append(membership.restore(store, 2, member, [tight], vnis))

    # It would begin at the same number.
    assert membership.join(store, 4, member, [tight], [2], restore) == {"nat": 201 - vnis["nat"]}
    assert asked == [[]]
    assert keys.items() <= store.read_prefix(membership.ROOT).items()
    assert membership.restore(store, 2, member, [tight], vnis) == []
    (text,) = membership.restore(store, 2, member, [tight], {"nat": 201 - vnis["nat"]})
    assert "another job's in the store (4)" in text
    for job_id in (2, 4):
        membership.leave(store, job_id, "n1")
    assert store.read_prefix(membership.ROOT) == {}
