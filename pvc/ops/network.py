# SPDX-License-Identifier: Apache-2.0
"""The networks of the caller's running clusters, put together from what their nodes tell."""

from __future__ import annotations

from dataclasses import dataclass

from pvc import codec
from pvc.errors import JobError, PvcError
from pvc.model.cluster import ClusterRecord
from pvc.model.netview import Counters, Member, NetworkReport
from pvc.ops.control import Control
from pvc.ops.jobdir import JobDir
from pvc.ops.registry import find_cluster, list_clusters

_ANSWER_S = 10.0


@dataclass(frozen=True)
class VmPort:
    """A VM's interface, with the VM's name and node."""

    vm: str
    node: str
    interface: Member


@dataclass(frozen=True)
class Tunnel:
    """The tunnel's end on a node: ``rx`` came from other nodes, ``tx`` went to them."""

    node: str
    counters: Counters


@dataclass(frozen=True)
class LiveNetwork:
    """One network of a running cluster."""

    job_id: int
    cluster: str
    network: str
    data_path: str
    vni: int | None
    mtu: int
    members: tuple[VmPort, ...]
    tunnels: tuple[Tunnel, ...]


@dataclass(frozen=True)
class LiveView:
    """The networks of clusters, and the nodes that did not tell, each with the reason."""

    networks: tuple[LiveNetwork, ...]
    silent: dict[str, str]


def read_live(job_id: int | None, job_name: str | None) -> LiveView:
    """Networks of the cluster that --job or --name means; of neither: of all that the caller has.

    :raise JobError: there is no such cluster, or Slurm does not answer.
    """
    if job_id is not None or job_name is not None:
        return read_cluster(find_cluster(job_id, job_name))
    found: list[LiveNetwork] = []
    silent: dict[str, str] = {}
    for listed in list_clusters():
        try:
            view = read_cluster(JobDir.of(listed.job_id).read_record())
        except JobError:
            continue  # it waits, or is just being set up
        found += view.networks
        silent |= view.silent
    return LiveView(tuple(found), silent)


def read_cluster(record: ClusterRecord) -> LiveView:
    """The networks of one cluster."""
    control = Control(record, JobDir.of(record.job_id))
    reports: list[NetworkReport] = []
    silent: dict[str, str] = {}
    for reply in control.ask_nodes({"op": "network"}, timeout_s=_ANSWER_S):
        where = f"job {record.job_id}, {reply.node}"
        if reply.error is not None:
            silent[where] = reply.error
            continue
        try:
            reports.append(codec.from_data(NetworkReport, reply.answer["report"]))
        except (ValueError, KeyError) as err:
            silent[where] = f"its answer is not understood: {err}"
    return LiveView(merge(record, reports), silent)


def merge(record: ClusterRecord, reports: list[NetworkReport]) -> tuple[LiveNetwork, ...]:
    """The nodes' shares, network by network."""
    names = dict.fromkeys(share.network for report in reports for share in report.networks)
    found = []
    for name in names:
        shares = [(report.node, share) for report in reports for share in report.networks if share.network == name]
        first = shares[0][1]
        members = [VmPort(f"vm{each.rank}", node, each) for node, share in shares for each in share.members]
        found.append(
            LiveNetwork(
                job_id=record.job_id,
                cluster=record.name,
                network=name,
                data_path=first.data_path,
                vni=first.vni,
                mtu=first.mtu,
                members=tuple(sorted(members, key=lambda each: each.interface.rank)),
                tunnels=tuple(Tunnel(node, share.tunnel) for node, share in shares if share.tunnel is not None),
            )
        )
    return tuple(found)


def try_live(job_id: int | None, job_name: str | None) -> tuple[LiveView, PvcError | None]:
    """The same for a listing that is of use without Slurm, too; a cluster asked for by name must be there."""
    try:
        return read_live(job_id, job_name), None
    except PvcError as err:
        if job_id is not None or job_name is not None:
            raise
        return LiveView((), {}), err
