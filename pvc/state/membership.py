# SPDX-License-Identifier: Apache-2.0
"""Which nodes belong to a job's cluster, and the VNIs that it holds while any of them does.

    v1/jobs/<job>/nodes/<node>      the node's address on the underlay, and its Slurm cluster
    v1/jobs/<job>/vni/<network>     the VNI
    v1/jobs/<job>/same/<network>    what of networks.yaml all nodes must have alike, of the node that came first
    v1/vni/<vni>                    the job that holds it

A value may have more words or fields in a later minor version of MEMBERSHIP, which stands in ``same``. The other values
are so plain that every version can leave by them.

All below the site's prefix (state.etcd). A node joins and reads the VNIs in one transaction; freeing them is
conditional on no member being left. So a VNI is never free while a node may still send with it, and nobody has to wait
for anybody.

A store that was emptied knows nothing of clusters that run: their nodes register them again, before one of them takes a
number for another, and now and then.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pvc import codec
from pvc.errors import ConfigError, Problem, StateError
from pvc.model.network import EthernetNetwork
from pvc.state.store import Absent, Delete, DeletePrefix, EmptyPrefix, Put, Store

ROOT = "v1"
MEMBERSHIP = codec.Format(1, 0)
_TRIES = 4096
_CLUSTER = "slurm-cluster"


@dataclass(frozen=True)
class Member:
    """A node as the store knows it. Two sites may have nodes of one name: ``address`` and Slurm ``cluster`` tell."""

    node: str
    address: str
    cluster: str = ""

    def key(self, job_id: int) -> str:
        """Where its membership of a job is."""
        return f"{_job(job_id)}nodes/{self.node}"

    def value(self) -> str:
        """What stands there."""
        return f"{self.address} {self.cluster}".strip()

    def is_mine(self, value: str) -> bool:
        """Whether a value is this node's. A cluster may not be known: not by who wrote it, or not by who asks."""
        address, cluster = _words(value)
        return address == self.address and cluster in ("", self.cluster or cluster)


def join(
    store: Store,
    job_id: int,
    member: Member,
    networks: Sequence[EthernetNetwork],
    others: Iterable[int] = (),
    restore: Callable[[], None] = lambda: None,
) -> dict[str, int]:
    """Make a node a member and return the VNI of each network, the same on every node of the job.

    ``others``: jobs that this node is a member of already. Where the store knows nothing of one, ``restore`` is called
    before a number is taken.

    :raise StateError: the store does not answer, no VNI is free, or another site has this job, or this node's name.
    :raise ConfigError: this node's networks.yaml is not that of the node that came first.
    """
    prefixes = f"{_job(job_id)}vni/", f"{_job(job_id)}same/"
    known = [member.key(each) for each in others]
    keys = [f"{prefix}{network.name}" for prefix in prefixes for network in networks]
    mine = Put(member.key(job_id), member.value())
    result = store.transact([Absent(mine.key)], [mine], [*keys, *known])
    if not result.done:
        _check_mine(member, store.read_prefix(mine.key).get(mine.key, member.value()))
        result = store.transact([], [mine], [*keys, *known])
    there = result.values
    if any(key not in there for key in known):
        restore()
    vnis: dict[str, int] = {}
    for index, network in enumerate(networks):
        vni, same = (f"{prefix}{network.name}" for prefix in prefixes)
        if vni not in there:
            there = there | _take(store, job_id, index, network, (vni, same), member.cluster)
        vnis[network.name] = int(there[vni])
        # A node of an earlier version said nothing of that.
        _check_same(network, there.get(same, ""), member.cluster)
    return vnis


def find_forgotten(store: Store, node: str, jobs: Sequence[int]) -> set[int]:
    """Those of a node's jobs of which the store does not know that it is a member.

    :raise StateError: the store does not answer.
    """
    keys = {Member(node, "").key(each): each for each in jobs}
    there = store.transact([], [], [*keys]).values if keys else {}
    return {job_id for key, job_id in keys.items() if key not in there}


def restore(
    store: Store, job_id: int, member: Member, networks: Sequence[EthernetNetwork], vnis: Mapping[str, int]
) -> list[str]:
    """Register a cluster that runs again, with the numbers that it has; those that another job has by now, in words.

    :raise StateError: the store does not answer.
    """
    store.transact([], [Put(member.key(job_id), member.value())])
    taken = []
    for network in networks:
        vni = vnis[network.name]
        vni_key, same_key, number_key = (
            f"{_job(job_id)}vni/{network.name}",
            f"{_job(job_id)}same/{network.name}",
            f"{ROOT}/vni/{vni}",
        )
        values = {vni_key: str(vni), same_key: _note(network, member.cluster), number_key: str(job_id)}
        writes = [Put(key, value) for key, value in values.items()]
        if store.transact([Absent(vni_key), Absent(number_key)], writes).done:
            continue
        found = store.transact([], [], [vni_key, number_key]).values
        if found.get(vni_key) != str(vni) or found.get(number_key) != str(job_id):
            holder = found.get(number_key, "none")
            taken.append(f"VNI {vni} of network {network.name} is another job's in the store ({holder})")
    return taken


def _words(value: str) -> tuple[str, str]:
    """A node's address and Slurm cluster, which is "" where it is not known."""
    address, cluster, *_ = [*value.split(" "), ""]
    return address, cluster


def _check_mine(member: Member, there: str) -> None:
    if not member.is_mine(there):
        address, cluster = _words(there)
        raise StateError(
            f"another machine is called {member.node} in the state store ({address}, Slurm cluster {cluster or '?'}), "
            "and has a job of the same number",
            hint="each site needs an etcd-prefix of its own in batch.yaml",
        )


def _check_same(network: EthernetNetwork, first: str, cluster: str) -> None:
    mine = _describe(network)
    theirs = _read_note(network, first) if first else mine
    if cluster and theirs.get(_CLUSTER, cluster) != cluster:
        raise StateError(
            f"Slurm cluster {theirs[_CLUSTER]} has a job of the same number in this state store",
            hint="each site needs an etcd-prefix of its own in batch.yaml",
        )
    problems = [
        Problem("networks.yaml", 0, f"{network.name}.settings.{key}", f"{value} here, {theirs[key]} on another node")
        for key, value in mine.items()
        if theirs.get(key, value) != value  # not all versions write the same keys
    ]
    if problems:
        raise ConfigError(problems, hint="the nodes of a cluster need the same networks.yaml: copy it to all of them")


def _read_note(network: EthernetNetwork, text: str) -> dict[str, Any]:
    try:
        found = codec.read_json(text)
        MEMBERSHIP.check(found)
    except codec.OtherVersionError as err:
        raise StateError(
            f"network {network.name} of this cluster is in the state store by another version of pvc",
            hint="the nodes of a cluster need the same version of pvc-node: upgrade the older ones",
        ) from err
    except ValueError:
        raise StateError(f"what the store has of network {network.name} cannot be read: {text[:80]!r}") from None
    note: dict[str, Any] = found
    return note


def _note(network: EthernetNetwork, cluster: str) -> str:
    return json.dumps(MEMBERSHIP.mark({**_describe(network), **({_CLUSTER: cluster} if cluster else {})}))


def _describe(network: EthernetNetwork) -> dict[str, str]:
    """What nodes must agree on to be one network, by the keys of networks.yaml."""
    return {
        "network-layer": network.layer.value,
        "data-path": network.data_path.value,
        "int-network": str(network.int_network),
        "int-network6": str(network.int_network6 or "none"),
        "mtu": str(network.mtu),
        "mac-prefix": network.mac_prefix,
        "domain-name": network.domain_name,
        "vxlan-port": str(network.vxlan_port),
    }


def leave(store: Store, job_id: int, node: str) -> None:
    """End the node's membership; the last member frees the VNIs. Absent is fine.

    :raise StateError: the store does not answer.
    """
    store.transact([], [Delete(f"{_job(job_id)}nodes/{node}")])
    held = store.read_prefix(f"{_job(job_id)}vni/")
    frees = [Delete(f"{ROOT}/vni/{vni}") for vni in held.values()]
    store.transact([EmptyPrefix(f"{_job(job_id)}nodes/")], [DeletePrefix(_job(job_id)), *frees])


def read_jobs(store: Store, node: str) -> dict[int, str]:
    """The jobs that a node of this name is a member of, and what is noted of the node; see ``Member.is_mine``.

    :raise StateError: the store does not answer.
    """
    prefix = f"{ROOT}/jobs/"
    found = ((key.removeprefix(prefix).split("/"), value) for key, value in store.read_prefix(prefix).items())
    return {int(part[0]): value for part, value in found if part[0].isdecimal() and part[1:] == ["nodes", node]}


def read_clusters(store: Store) -> dict[int, tuple[tuple[str, ...], tuple[int, ...]]]:
    """The nodes and VNIs of every cluster.

    :raise StateError: the store does not answer.
    """
    prefix = f"{ROOT}/jobs/"
    nodes: dict[int, list[str]] = {}
    vnis: dict[int, list[int]] = {}
    for key, value in store.read_prefix(prefix).items():
        job_id, _, rest = key.removeprefix(prefix).partition("/")
        kind, _, name = rest.partition("/")
        if not job_id.isdecimal():
            continue
        nodes.setdefault(int(job_id), [])
        if kind == "nodes":
            nodes[int(job_id)].append(name)
        elif kind == "vni" and value.isdecimal():
            vnis.setdefault(int(job_id), []).append(int(value))
    return {job_id: (tuple(found), tuple(vnis.get(job_id, ()))) for job_id, found in nodes.items()}


def _take(
    store: Store, job_id: int, index: int, network: EthernetNetwork, keys: tuple[str, str], cluster: str
) -> dict[str, str]:
    """What the two keys hold now: what another node has written, or what this one does."""
    vni_key, same_key = keys
    size = network.max_vni - network.min_vni + 1
    # Neighbouring jobs start at different places, so the first try nearly always succeeds.
    start = job_id * 7 + index
    for step in range(min(size, _TRIES)):
        vni = network.min_vni + (start + step) % size
        values = {vni_key: str(vni), same_key: _note(network, cluster)}
        writes = [Put(key, value) for key, value in {**values, f"{ROOT}/vni/{vni}": str(job_id)}.items()]
        if store.transact([Absent(vni_key), Absent(f"{ROOT}/vni/{vni}")], writes).done:
            return values
        found = store.read_prefix(_job(job_id))
        if vni_key in found:
            return found
    raise StateError(
        f"no VNI is free in {network.min_vni}-{network.max_vni} for network {network.name}",
        hint="widen vni-range in networks.yaml, or wait for clusters to end",
    )


def _job(job_id: int) -> str:
    return f"{ROOT}/jobs/{job_id}/"
