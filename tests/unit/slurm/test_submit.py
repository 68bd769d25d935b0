"""Command lines for Slurm."""

from __future__ import annotations

import shlex

from pvc.slurm.submit import (
    JobWishes,
    PartWishes,
    allocation_argv,
    batch_script,
    salloc_argv,
    sbatch_argv,
    step_environment,
    supervisors_argv,
)

WISHES = JobWishes("web:2,db:1", "mine", (PartWishes(3, 4, 1001, "2-3", ("--qos=low",)),), quiet=True)


def test_allocation() -> None:
    assert allocation_argv(WISHES, ["--partition=vm"], ["-p", "fast"]) == [
        *("--pvc=web:2,db:1", "--job-name=mine", "--quiet", "--ntasks=3", "--cpus-per-task=4", "--mem-per-cpu=251M"),
        *("--nodes=2-3", "--partition=vm", "--qos=low", "-p", "fast"),
    ]


def test_a_component_for_each_part_has_all_options() -> None:
    parts = (PartWishes(2, 1, args=("--gres=gpu:1",)), PartWishes(4, 8, 4096))
    assert allocation_argv(JobWishes("a:2,b:4", "x", parts), ["--partition=vm"], ["--time=9"]) == [
        *("--pvc=a:2,b:4", "--job-name=x"),
        *("--ntasks=2", "--cpus-per-task=1", "--partition=vm", "--gres=gpu:1", "--time=9", ":"),
        *("--ntasks=4", "--cpus-per-task=8", "--mem-per-cpu=512M", "--partition=vm", "--time=9"),
    ]


def test_what_is_not_wished_is_not_asked() -> None:
    argv = allocation_argv(JobWishes("web", "pvc", (PartWishes(1, 1),), comment="pvc web"), (), ())
    assert argv == ["--pvc=web", "--job-name=pvc", "--comment=pvc web", "--ntasks=1", "--cpus-per-task=1"]


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
    assert not any("het-group" in word for word in argv)
    assert supervisors_argv(["n1"], ["x"], 1)[:2] == ["srun", "--het-group=1"]


def test_the_jobs_own_layout_does_not_reach_the_step() -> None:
    environ = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_MEM_PER_CPU": "9", "SRUN_X": "1", "PVC_LAUNCH": "x"}
    assert step_environment(environ | {"HOME": "/h"}) == {"SLURM_JOB_ID": "7", "HOME": "/h"}
