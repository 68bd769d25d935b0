"""What every store must do; run over the memory store here and over a real etcd in tests/host."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from pvc.errors import StateError
from pvc.state import membership
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
        grants = list(pool.map(lambda node: membership.join(store, 7, node, "10.9.0.1", [NAT, BACK]), nodes))
    assert all(grant == grants[0] for grant in grants)
    assert len(set(grants[0].values())) == 2
    for node in nodes[:-1]:
        membership.leave(store, 7, node)
    assert membership.join(store, 7, nodes[0], "10.9.0.1", [NAT, BACK]) == grants[0]
    for node in nodes:
        membership.leave(store, 7, node)
        membership.leave(store, 7, node)
    assert store.read_prefix(membership.ROOT) == {}


def check_jobs_never_share_a_vni(store: Store) -> None:
    tight = replace(NAT, min_vni=100, max_vni=119)
    with ThreadPoolExecutor(6) as pool:
        grants = list(pool.map(lambda job: membership.join(store, job, "n1", "10.9.0.1", [tight])["nat"], range(1, 21)))
    assert sorted(grants) == list(range(100, 120))
    with pytest.raises(StateError, match="no VNI is free in 100-119"):
        membership.join(store, 21, "n1", "10.9.0.1", [tight])
    membership.leave(store, 21, "n1")
    assert membership.read_jobs(store, "n1") == set(range(1, 21))
    assert membership.read_jobs(store, "n") == set()
    for job in range(1, 21):
        membership.leave(store, job, "n1")
    assert store.read_prefix(membership.ROOT) == {}
