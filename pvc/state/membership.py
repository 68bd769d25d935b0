"""Which nodes belong to a job's cluster, and the VNIs that it holds while any of them does.

    /pvc/v1/jobs/<job>/nodes/<node>      the node's address on the underlay
    /pvc/v1/jobs/<job>/vni/<network>     the VNI
    /pvc/v1/vni/<vni>                    the job that holds it

A node joins and reads the VNIs in one transaction; freeing them is conditional on no member being left.
So a VNI is never free while a node may still send with it, and nobody has to wait for anybody.
"""

from __future__ import annotations

from collections.abc import Sequence

from pvc.errors import StateError
from pvc.model.network import EthernetNetwork
from pvc.state.store import Absent, Delete, DeletePrefix, EmptyPrefix, Put, Store

ROOT = "/pvc/v1"
_TRIES = 4096


def join(store: Store, job_id: int, node: str, address: str, networks: Sequence[EthernetNetwork]) -> dict[str, int]:
    """Make ``node`` a member and return the VNI of each network, the same on every node of the job.

    :raise StateError: the store does not answer, or no VNI is free.
    """
    keys = {network.name: f"{_job(job_id)}vni/{network.name}" for network in networks}
    joined = store.transact([], [Put(f"{_job(job_id)}nodes/{node}", address)], list(keys.values()))
    vnis: dict[str, int] = {}
    for index, network in enumerate(networks):
        value = joined.values.get(keys[network.name])
        vnis[network.name] = int(value) if value else _take(store, job_id, index, network, keys[network.name])
    return vnis


def leave(store: Store, job_id: int, node: str) -> None:
    """End the node's membership; the last member frees the VNIs. Absent is fine.

    :raise StateError: the store does not answer.
    """
    store.transact([], [Delete(f"{_job(job_id)}nodes/{node}")])
    held = store.read_prefix(f"{_job(job_id)}vni/")
    frees = [Delete(f"{ROOT}/vni/{vni}") for vni in held.values()]
    store.transact([EmptyPrefix(f"{_job(job_id)}nodes/")], [DeletePrefix(_job(job_id)), *frees])


def read_jobs(store: Store, node: str) -> set[int]:
    """The jobs that ``node`` is a member of.

    :raise StateError: the store does not answer.
    """
    prefix = f"{ROOT}/jobs/"
    parts = (key.removeprefix(prefix).split("/") for key in store.read_prefix(prefix))
    return {int(part[0]) for part in parts if part[0].isdigit() and part[1:] == ["nodes", node]}


def _take(store: Store, job_id: int, index: int, network: EthernetNetwork, key: str) -> int:
    size = network.max_vni - network.min_vni + 1
    # Neighbouring jobs start at different places, so the first try nearly always succeeds.
    start = job_id * 7 + index
    for step in range(min(size, _TRIES)):
        vni = network.min_vni + (start + step) % size
        taken = store.transact(
            [Absent(key), Absent(f"{ROOT}/vni/{vni}")], [Put(key, str(vni)), Put(f"{ROOT}/vni/{vni}", str(job_id))]
        )
        if taken.done:
            return vni
        found = store.read_prefix(key).get(key)
        if found:
            return int(found)
    raise StateError(
        f"no VNI is free in {network.min_vni}-{network.max_vni} for network {network.name}",
        hint="widen vni-range in networks.yaml, or wait for clusters to end",
    )


def _job(job_id: int) -> str:
    return f"{ROOT}/jobs/{job_id}/"
