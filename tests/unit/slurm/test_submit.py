"""Command lines for Slurm."""

from __future__ import annotations

import shlex

from pvc.slurm.submit import (
    JobWishes,
    allocation_argv,
    batch_script,
    salloc_argv,
    sbatch_argv,
    step_environment,
    supervisors_argv,
)

WISHES = JobWishes(definition="web:2,db:1", count=3, cpus=4, name="mine", memory_mib=1001, nodes="2-3", quiet=True)


def test_allocation() -> None:
    assert allocation_argv(WISHES, ["--partition=vm"], ["-p", "fast"]) == [
        *("--pvc=web:2,db:1", "--job-name=mine", "--ntasks=3", "--cpus-per-task=4", "--mem-per-cpu=251M"),
        *("--nodes=2-3", "--quiet", "--partition=vm", "-p", "fast"),
    ]


def test_what_is_not_wished_is_not_asked() -> None:
    argv = allocation_argv(JobWishes("web", 1, 1, "pvc", comment="pvc web"), (), ())
    assert argv == ["--pvc=web", "--job-name=pvc", "--ntasks=1", "--cpus-per-task=1", "--comment=pvc web"]


def test_commands() -> None:
    assert salloc_argv(["-n1"], ["/bin/pvc", "launch"]) == ["salloc", "-n1", "--", "/bin/pvc", "launch"]
    assert sbatch_argv(["-n1"]) == ["sbatch", "-n1"]


def test_a_batch_script_quotes_everything() -> None:
    command = ["/opt/my tools/pvc", "launch", "--", "it's", "$(rm -rf /)", "a\nb"]
    text = batch_script(command, {"PVC_LAUNCH": "x y'z"})
    first, *rest = text.split("\n", 2)
    assert first == "#!/bin/sh"
    assert shlex.split(rest[0]) == ["export", "PVC_LAUNCH=x y'z"]
    assert shlex.split(rest[1]) == ["exec", *command]


def test_one_supervisor_on_each_node_with_all_of_the_job() -> None:
    argv = supervisors_argv(["n1", "n3"], ["/bin/pvc", "supervise"])
    assert argv[0] == "srun"
    assert argv[-2:] == ["/bin/pvc", "supervise"]
    assert {"--overlap", "--nodes=2", "--ntasks=2", "--nodelist=n1,n3", "--mem=0", "--cpu-bind=none"} <= set(argv)
    assert not {"--unbuffered", "-u", "-c", "--exact"} & set(argv)


def test_the_jobs_own_layout_does_not_reach_the_step() -> None:
    environ = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_MEM_PER_CPU": "9", "SRUN_X": "1", "PVC_LAUNCH": "x"}
    assert step_environment(environ | {"HOME": "/h"}) == {"SLURM_JOB_ID": "7", "HOME": "/h"}
