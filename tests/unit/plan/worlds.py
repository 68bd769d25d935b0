# SPDX-License-Identifier: Apache-2.0
"""Networks and jobs that the plan tests share."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Network

from pvc.model.host import Grants, JobFacts, NodeFacts
from pvc.model.network import DataPath, EthernetNetwork, Layer, Outbound, ResourceSet, ReverseNat
from pvc.model.request import Request, SetRequest
from pvc.plan.node import NodePlan, Site, plan_node
from pvc.plan.placement import place

NAT = EthernetNetwork(
    name="nat",
    dev_prefix="nat",
    layer=Layer.L3,
    data_path=DataPath.KERNEL,
    int_network=IPv4Network("10.200.0.0/16"),
    ext_network=IPv4Network("10.201.0.0/16"),
    mtu=1550,
    mac_prefix="52:54:00",
    domain_name="pvc.test",
    dns_servers=(),
    dns_search=(),
    ntp_server=None,
    allow_outbound=Outbound.ALL,
    reverse_nat=(ReverseNat(22, 22, 60000, 60999),),
    vxlan_port=4789,
    min_vni=1024,
    max_vni=65535,
)
BACK = replace(
    NAT,
    name="back",
    int_network=IPv4Network("10.210.0.0/20"),
    domain_name="back.test",
    allow_outbound=Outbound.NONE,
    reverse_nat=(),
)
SITE = Site(
    networks={"nat": NAT, "back": BACK},
    resource_sets={
        "nat": ResourceSet("nat", ("nat",), default=True),
        "both": ResourceSet("both", ("nat", "back")),
        "none": ResourceSet("none", ()),
    },
    run_dir="/var/tmp/pvc",
    service_dir="/run/pvc/net",
)


def job_of(nodes: int, cpus: int, *, node: int = 1, job_id: int = 12) -> JobFacts:
    """A job on n1..nN with as many cores on each."""
    names = tuple(f"n{number}" for number in range(1, nodes + 1))
    return JobFacts(job_id, 1000, 1000, f"n{node}", names, (cpus,) * nodes)


def facts_of(job: JobFacts) -> NodeFacts:
    """Node k is 10.99.k/256.k%256."""
    numbers = {name: int(name[1:]) for name in job.nodes}
    peers = {name: f"10.99.{number >> 8}.{number & 255}" for name, number in numbers.items()}
    return NodeFacts(peers[job.node], "eth0", 9000, peers, ("192.0.2.53",))


def request_of(*sets: tuple[str, int], cpus: int | None = None) -> Request:
    """A request for (resource set, count)s."""
    return Request(tuple(SetRequest(name, count) for name, count in sets), cpus)


def plan_of(job: JobFacts, request: Request, *, slot: int = 0) -> NodePlan:
    """The plan of the job's node with the lowest numbers granted."""
    placement = place(job.nodes, job.cpus, request, job.parts)
    share = next(share for share in placement.shares if share.node == job.node)
    local = sum(
        1
        for rank in range(share.first_rank, share.first_rank + share.count)
        if "nat" in SITE.resource_sets[_set_of(request, rank)].networks
    )
    grants = Grants({"nat": 5001, "back": 5002}, slot, tuple(range(60000, 60000 + local)))
    return plan_node(job, request, placement, SITE, facts_of(job), grants)


def _set_of(request: Request, rank: int) -> str:
    for item in request.sets:
        if rank < item.count:
            return item.resource_set
        rank -= item.count
    raise AssertionError("rank beyond the request")
