# SPDX-License-Identifier: Apache-2.0
"""Command lines for Slurm."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvc.slurm.submit import (
    JobWishes,
    PartWishes,
    allocation_argv,
    batch_script,
    salloc_argv,
    sbatch_argv,
    step_environment,
    submission_environment,
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


@pytest.mark.parametrize(
    "name",
    [
        "SLURM_GPUS",
        "SLURM_CPUS_PER_GPU",
        "SLURM_CONSTRAINT",
        "SLURM_DEBUG",
        "SLURM_EXPORT_ENV",
        "SLURM_CLUSTERS",
        "SLURM_MPI_TYPE",
        "SLURM_HOSTFILE",
        "SLURM_HINT",
        "SLURM_SIGNAL",
        "SLURM_PARTITION",
        "SLURM_PROLOG",
        "SLURM_TASK_EPILOG",
        "SLURM_OPEN_MODE",
        "SLURM_BCAST",
        "SLURM_WAIT",
        "SLURM_THREADS",
        "SLURM_UNHEARD_OF",
        "SRUN_CPUS_PER_TASK",
        "SRUN_EXPORT_ENV",
        "SRUN_DEBUG",
        "SLURM_STEP_ID",
        "PMIX_RANK",
        "SLURM_CPUS_PER_GPU_HET_GROUP_0",
        "SPANK_X",
        "SLURM_SPANK__SLURM_SPANK_OPTION_pyxis_container-image",
        "PVC_RESOLVED",
        "SLURM_PACK_SIZE",
    ],
)
def test_a_step_is_told_its_job_and_nothing_else_of_slurm(name: str) -> None:
    assert step_environment({name: "1", "LANG": "C"}) == {"LANG": "C"}


def test_a_step_has_what_plug_ins_noted_for_it() -> None:
    """A step that comes before its prolog asks for its node's set-up with it."""
    notes = {"SLURM_SPANK_PVC_REQUEST": "1;nat:2", "SLURM_SPANK_X": "1"}
    assert step_environment(notes) == notes


def test_a_step_of_a_component_knows_all_components() -> None:
    job = {"SLURM_JOB_ID": "7", "SLURM_HET_SIZE": "2", "SLURM_JOB_ID_HET_GROUP_0": "7", "SLURM_JOB_ID_HET_GROUP_1": "8"}
    job |= {"SLURM_JOB_NODELIST_HET_GROUP_1": "n2", "SLURM_CONF": "/etc/slurm.conf"}
    assert step_environment(job) == job


@given(
    name=st.from_regex(r"(SLURM|SALLOC|SBATCH|SRUN|SPANK|PMI|PVC)_[A-Z0-9_]{1,20}", fullmatch=True),
    program=st.sampled_from(["salloc", "sbatch"]),
)
def test_a_job_inside_of_another_has_nothing_of_it(name: str, program: str) -> None:
    kept, ignored = submission_environment({name: "1", "HOME": "/h"}, program)
    assert kept["HOME"] == "/h"
    own = f"{program.upper()}_"
    if name.startswith(own):
        assert (name in kept) != (name in ignored)
    elif name.startswith(("SLURM_", "SPANK_", "PMI_")):
        assert name not in kept or name in ("SLURM_CONF", "SLURM_JWT", "SLURM_CLUSTERS")
        assert ignored == ()


def test_a_users_wishes_for_jobs_count_and_those_for_tasks_are_told() -> None:
    mine = {"SALLOC_PARTITION": "fast", "SALLOC_TIMELIMIT": "5", "SQUEUE_FORMAT": "%i", "SBATCH_MEM_PER_CPU": "1G"}
    kept, ignored = submission_environment(mine | {"SALLOC_HINT": "x", "SALLOC_MEM_PER_CPU": "9"}, "salloc")
    assert kept == mine
    assert ignored == ("SALLOC_HINT", "SALLOC_MEM_PER_CPU")
