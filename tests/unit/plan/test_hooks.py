# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pvc.model.vm import Hooks, VmTemplate
from pvc.plan.expand import fill_template
from pvc.plan.hooks import plan_environment


def test_a_hook_knows_its_vm_and_its_job_and_no_more() -> None:
    inherited = {"HOME": "/home/anne", "SLURM_JOB_ID": "7", "PVC_LAUNCH": "large", "PATH": "/evil", "LD_PRELOAD": "x"}
    found = plan_environment(inherited, "/usr/bin", {"vm": "vm3", "ssh_port": 2203, "detail": None})
    assert found == {
        "LANG": "C.UTF-8",
        "HOME": "/home/anne",
        "SLURM_JOB_ID": "7",
        "PATH": "/usr/bin",
        "PVC_VM": "vm3",
        "PVC_SSH_PORT": "2203",
    }


def test_words_are_filled_for_each_vm() -> None:
    hooks = Hooks(("/a", "%{vm_rank}"), ("b", "%{job_id}"), ("c",), ("%{vm_rank}%{job_id}",), 9)
    template = VmTemplate("t", None, None, "none", hooks=hooks)
    assert fill_template(template, 3, 12).hooks == Hooks(("/a", "3"), ("b", "12"), ("c",), ("312",), 9)
