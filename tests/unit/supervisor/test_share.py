# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from pvc.errors import GuestError
from pvc.model.cluster import ClusterKeys, ClusterSpec, NodeShare, Placement, VmGroup
from pvc.model.node import Nic, NodeGrant, VmGrant
from pvc.model.request import Size
from pvc.model.vm import Accel, VmTemplate
from pvc.plan.numa import Pinning
from pvc.supervisor.share import VmShare, find_node_share, node_templates, plan_vms

WEB = VmTemplate("web", None, None, "nat")
DB = VmTemplate("db", None, None, "nat", qemu_bin="qemu-other")
SPEC = ClusterSpec(
    job_id=12,
    name="web:3,db",
    definition="web:3,db",
    placement=Placement((Size(3, 2), Size(1, 4)), (NodeShare("n1", 0, 2), NodeShare("n2", 2, 2, 1))),
    groups=(VmGroup("web", 0, 3), VmGroup("db", 3, 1)),
    templates={"web": WEB, "db": DB},
    memory_mib=(1024, 2048),
    accel=Accel.AUTO,
    authorized_keys=(),
    keys=ClusterKeys("", "", "", "", "", ""),
)
NIC = Nic("nat", "52:54:00:00:00:02", 1450, "10.200.0.3/16", "10.200.0.1", 0)
GRANT = NodeGrant(
    12,
    "n2",
    "10.0.0.2",
    "/var/tmp/pvc/12",
    (
        VmGrant(2, (NIC,), {"22": 60002}),
        VmGrant(3, (dataclasses.replace(NIC, tap_index=2), dataclasses.replace(NIC, tap_index=1)), {}),
    ),
)
SHARE = SPEC.placement.shares[1]


def plan(
    spec: ClusterSpec = SPEC, grant: NodeGrant = GRANT, taps: tuple[int, ...] = (50, 51, 52)
) -> tuple[VmShare, ...]:
    return plan_vms(
        spec,
        SHARE,
        grant,
        taps,
        accels={2: Accel.KVM, 3: Accel.TCG},
        memory_mib={2: 900, 3: 800},
        pinning=Pinning(((0, 1), (2, 3))),
    )


def test_each_vm_gets_what_is_its_own() -> None:
    web, db = plan()
    assert (web.name, web.template, web.taps, web.pins) == ("vm2", WEB, (50,), (0, 1))
    assert (db.name, db.template, db.taps, db.pins) == ("vm3", DB, (52, 51), (2, 3))
    assert (web.accel, web.memory_mib, db.accel, db.memory_mib) == (Accel.KVM, 900, Accel.TCG, 800)
    assert (web.cpus, db.cpus) == (2, 4)
    assert (web.ssh_host, web.ssh_port) == ("10.0.0.2", 60002)
    assert (db.ssh_host, db.ssh_port) == (None, None)
    assert web.directory == Path("/var/tmp/pvc/12/vm2")


def test_a_node_without_part() -> None:
    assert find_node_share(SPEC, "n2") == SHARE
    with pytest.raises(GuestError, match="'n9' has no part"):
        find_node_share(SPEC, "n9")


def test_ranks_that_the_groups_do_not_cover() -> None:
    spec = dataclasses.replace(SPEC, groups=SPEC.groups[:1])
    with pytest.raises(GuestError, match="no template for vm3"):
        node_templates(spec, SHARE)
    with pytest.raises(GuestError, match="no template for vm3"):
        node_templates(dataclasses.replace(SPEC, templates={"web": WEB}), SHARE)


def test_a_grant_for_other_ranks() -> None:
    with pytest.raises(GuestError, match=r"set up for ranks \[2\], the launcher wants \[2, 3\]"):
        plan(grant=dataclasses.replace(GRANT, vms=GRANT.vms[:1]))


def test_too_few_taps() -> None:
    with pytest.raises(GuestError, match="too few taps for vm3"):
        plan(taps=(50, 51))
