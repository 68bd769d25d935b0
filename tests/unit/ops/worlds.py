# SPDX-License-Identifier: Apache-2.0
"""Small clusters for the tests of the user's side."""

from __future__ import annotations

from pathlib import Path

from pvc.config.load import load_config
from pvc.model.cluster import ClusterRecord, NodeEndpoint, NodeShare, Placement, VmGroup
from pvc.model.event import Event, EventKind
from pvc.model.request import Size
from pvc.model.site import SiteConfig
from pvc.model.vm import Phase, VmStatus
from pvc.ops.progress import Progress
from tests.unit.config.sites import EXPANSION, write_site

PLACEMENT = Placement((Size(3, 2),), (NodeShare("n1", 0, 2), NodeShare("n2", 2, 1), NodeShare("n3", 3, 0)))
TEMPLATES = """
web: {image: web}
db: {image: web, resource-set: lan}
plain: {}
"""
RESOURCES = "nat: {networks: [nat], default: yes}\nlan: {networks: [lan]}\n"
NETWORKS = """
nat: {type: ethernet, settings: {dev-prefix: nat}}
lan: {type: ethernet, settings: {dev-prefix: lan, network-layer: L2}}
"""


def make_config(tmp_path: Path) -> SiteConfig:
    """Templates web, db and plain; resource sets nat (the default) and lan; an empty repository."""
    repos = f"repos:\n  - {{name: site, path: {tmp_path / 'images'}}}\n"
    site = write_site(tmp_path / "site", templates=TEMPLATES, resources=RESOURCES, networks=NETWORKS, repos=repos)
    return load_config(site, None, expansion=EXPANSION)


def make_record(*endpoints: NodeEndpoint, job_id: int = 7) -> ClusterRecord:
    """web:2,db:1 on n1 and n2."""
    groups = (VmGroup("web", 0, 2), VmGroup("db", 2, 1))
    return ClusterRecord(job_id, "pvc", "web:2,db:1", 100.0, "login", 1, PLACEMENT, groups, endpoints)


def make_progress() -> Progress:
    """The same, at second 100 of the epoch."""
    return Progress.of(PLACEMENT, ["web", "web", "db"], 100.0)


def vm_event(rank: int, phase: Phase, *, time: float = 101.0, detail: str = "") -> Event:
    """A VM has reached a phase."""
    return Event(EventKind.VM, "n2" if rank == 2 else "n1", time, rank=rank, phase=phase, detail=detail)


def listening(node: str, port: int = 4000) -> Event:
    """A supervisor's port is open."""
    return Event(EventKind.LISTENING, node, 100.5, host="127.0.0.1", port=port)


def make_status(rank: int, phase: Phase, *, port: int | None = 60000, detail: str = "") -> VmStatus:
    """A VM as its supervisor tells."""
    return VmStatus(
        rank=rank,
        name=f"vm{rank}",
        template="web",
        node="n2" if rank == 2 else "n1",
        phase=phase,
        cpus=2,
        memory_mib=512,
        addresses=(f"10.200.0.{rank + 1}",),
        ssh_host=None if port is None else "127.0.0.1",
        ssh_port=port,
        accel="tcg",
        pinned=(),
        started=101.0,
        reachable=None,
        detail=detail,
    )
