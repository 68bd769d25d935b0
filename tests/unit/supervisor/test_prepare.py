# SPDX-License-Identifier: Apache-2.0
"""What a guest's seed says of a template."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pvc.model.cluster import ClusterKeys, ClusterSpec, Placement
from pvc.model.node import VmGrant
from pvc.model.vm import Accel, VmTemplate
from pvc.plan.cloudinit import plan_seed
from pvc.supervisor.prepare import seed_spec
from pvc.supervisor.share import VmShare


@pytest.mark.parametrize(("instance", "seen"), [(None, ["pvc-12-ab-vm0", "pvc-12-ab-vm1"]), ("lab", ["lab", "lab"])])
def test_an_instance_is_the_templates_or_a_new_one(instance: str | None, seen: list[str]) -> None:
    template = VmTemplate("t", None, None, "none", instance_id=instance)
    spec = ClusterSpec(
        12, "c", "t", Placement((), ()), (), {}, (64,), Accel.TCG, (), ClusterKeys("one", "", "", "", "", "")
    )
    shares = [
        VmShare(vm, template, VmGrant(vm, (), {}), "n1", Path("/"), 1, 64, Accel.TCG, (), (), None, None)
        for vm in range(2)
    ]
    seeds = [plan_seed(seed_spec(share, spec, "pvc-12-ab")) for share in shares]
    assert [json.loads(seed["meta-data"])["instance-id"] for seed in seeds] == seen
