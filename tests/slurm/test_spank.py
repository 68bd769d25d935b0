# SPDX-License-Identifier: Apache-2.0
"""What the plug-in's design rests on, asked of a real Slurm; man/pvc-spank.8.rst tells the same to sites.

Where a node has to fail, ``pvc`` and ``pvc-node`` of plugstack.conf are shell scripts of the test.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pvc.testbed import osroot
from pvc.testbed.layout import OWN
from tests.slurm.testbed import OS, TOP, Testbed
from tests.waits import wait_until

PVC = """#!/bin/sh
case "$3" in
good*) echo '1;nat:4' ;;
sized*) echo '1;sizes=1:2,2:1;nat:3' ;;
*) echo "pvc: unknown template '$3'" >&2; exit 2 ;;
esac
"""
# Leaves what a prolog or an epilog was told in a file of its node.
PVC_NODE = """#!/bin/sh
cd /home/student/stand-in || exit 1
[ "$1" != ensure ] || set -- setup # of a step that came before its prolog
env | sort >"$1-$SLURM_JOB_ID-$SLURMD_NODENAME"
mkdir -p /run/stand-in/jobs/"$SLURM_JOB_ID"
[ "$1" = setup ] || rm -r /run/stand-in/jobs/"$SLURM_JOB_ID"
[ ! -e "$1-hook-$SLURMD_NODENAME" ] || . "./$1-hook-$SLURMD_NODENAME"
[ "$1" != setup ] || : >/run/stand-in/jobs/"$SLURM_JOB_ID"/plan.json
"""
# A job's command that ends when salloc has been told of a prolog's failure, or after a long while.
LAST = """trap '' HUP TERM
for _ in $(seq 2000); do
    ! grep -q 'Prolog failure' said || break
    sleep 0.1
done
"""
SHOW = "env | grep ^PVC_DEFINITION="
# A plug-in of the user's own, that a slurm.conf of his own loads.
HOSTILE = r"""
#include <slurm/spank.h>
SPANK_PLUGIN(hostile, 1)
int slurm_spank_init_post_opt(spank_t sp, int ac, char *av[])
{
	(void)ac; (void)av;
	if (spank_context() == S_CTX_LOCAL)
		spank_job_control_setenv(sp, "PVC_REQUEST", REQUEST, 1);
	return 0;
}
"""


class StandIn:
    """A testbed whose plug-in calls scripts of the test."""

    def __init__(self, tb: Testbed) -> None:
        self.tb = tb
        self.home = tb.home()
        self.directory = self.home / "stand-in"
        self.directory.mkdir(exist_ok=True)
        self.directory.chmod(0o777)
        for name, text in (("pvc", PVC), ("pvc-node", PVC_NODE)):
            (self.directory / name).write_text(text)
            (self.directory / name).chmod(0o755)
        self.plugstack = tb.place.state_dir / "etc" / "slurm" / "plugstack.conf"
        self.before = self.plugstack.read_text()
        self.plugin = self.before.split()[1]
        self.arguments()

    def arguments(self, *more: str) -> None:
        """Set the plug-in's arguments."""
        base = "/home/student/stand-in"
        words = [f"pvc={base}/pvc", f"pvc-node={base}/pvc-node", "socket=/run/stand-in/no", "state_dir=/run/stand-in"]
        self.plugstack.write_text(" ".join(["required", self.plugin, *words, *more]) + "\n")

    def hook(self, verb: str, node: str, script: str) -> None:
        """What the stand-in of pvc-node does on one node besides."""
        (self.directory / f"{verb}-hook-{node}").write_text(script)

    def fail(self) -> str:
        """What salloc says of a job whose prolog fails somewhere.

        It has no step: with NoHold one may start before the prolog does, and srun may end before it is told.
        """
        (self.home / "last.sh").write_text(LAST)
        self.tb.run("salloc -N3 --pvc=good:4 sh ./last.sh 2>said", check=False, timeout=300)
        self.tb.wait_no_jobs()
        return (self.home / "said").read_text()

    def told(self, verb: str) -> dict[str, dict[str, str]]:
        """By node, the environment of the last job's prolog ("setup") or epilog ("teardown")."""
        found: dict[int, dict[str, dict[str, str]]] = {}
        for path in self.directory.glob(f"{verb}-[0-9]*"):
            _, job, node = path.name.split("-")
            lines = path.read_text().splitlines()
            found.setdefault(int(job), {})[node] = dict(line.split("=", 1) for line in lines)
        return found[max(found)] if found else {}

    def reasons(self) -> dict[str, str]:
        """Why nodes are drained."""
        rows = self.tb.run(["sinfo", "-h", "-R", "-o", "%n|%E"]).out.splitlines()
        return dict(row.split("|", 1) for row in rows)

    def close(self) -> None:
        """As it was."""
        self.plugstack.write_text(self.before)
        subprocess.run(["rm", "-rf", os.fspath(self.directory)], check=True)
        self.tb.run(["scancel", "-u", "student"], check=False)
        self.tb.wait_no_jobs()
        if self.reasons():
            nodes = ",".join(self.reasons())
            self.tb.root(["scontrol", "update", f"NodeName={nodes}", "State=RESUME"], "login", check=False)
        self.tb.wait_idle()


@pytest.fixture
def stand_in(tb: Testbed) -> Iterator[StandIn]:
    made = StandIn(tb)
    yield made
    made.close()


def last_job(tb: Testbed) -> int:
    text = tb.run(["scontrol", "show", "jobs", "-o"], check=False).out
    return max((int(number) for number in re.findall(r"\bJobId=(\d+)", text)), default=0)


@pytest.mark.parametrize("command", ["salloc", "sbatch", "srun"])
def test_option_is_in_the_help(tb: Testbed, command: str) -> None:
    assert "--pvc=DEFINITION" in tb.run([command, "--help"]).out


@pytest.mark.parametrize(
    "argv", [["salloc", "true"], ["sbatch", "--wrap=true"], ["srun", "true"]], ids=lambda argv: argv[0]
)
def test_refused_definition_makes_no_job(tb: Testbed, argv: list[str]) -> None:
    before = last_job(tb)
    done = tb.run([argv[0], "-N3", "--pvc=no-such-template:4", *argv[1:]], check=False)
    assert done.code == 1
    assert "no-such-template" in done.err
    assert tb.jobs() == []
    assert last_job(tb) == before


def test_job_without_the_option_needs_nothing_of_pvc(stand_in: StandIn) -> None:
    stand_in.plugstack.write_text(f"required {stand_in.plugin} pvc=/none pvc-node=/none state_dir=/none\n")
    assert stand_in.tb.run(["srun", "-N3", "hostname"]).out.split() != []
    stand_in.tb.wait_no_jobs()
    assert stand_in.reasons() == {}


def test_facts_of_the_job_reach_prolog_and_epilog(stand_in: StandIn) -> None:
    # A job that ends at once may end before its prologs have begun, and a step come before them.
    wait = "until ls stand-in/setup-$SLURM_JOB_ID-n1 stand-in/setup-$SLURM_JOB_ID-n2 stand-in/setup-$SLURM_JOB_ID-n3"
    words = ["timeout", "50", "sh", "-c", f"{wait}; do sleep 0.1; done"]
    stand_in.tb.run(["salloc", "-N3", "-c2", "--pvc=good:4", *words])
    stand_in.tb.wait_no_jobs()
    for verb in ("setup", "teardown"):
        told = stand_in.told(verb)
        assert sorted(told) == ["n1", "n2", "n3"]
        facts = told["n2"]
        assert facts["SPANK_PVC_REQUEST"] == "1;nat:4"
        assert facts["SLURM_NODELIST"] == "n[1-3]"
        assert facts["SLURM_JOB_CPUS_PER_NODE"] == "2(x3)"
        assert facts["SLURMD_NODENAME"] == "n2"
        assert facts["SLURM_JOB_USER"] == "student"
        assert facts["SLURM_JOB_UID"] == str(stand_in.home.stat().st_uid)
        others = set(facts) - {"PATH", "LANG", "PWD", "OLDPWD", "SPANK_PVC_REQUEST", "SLURMD_NODENAME"}
        assert all(name.startswith("SLURM_") for name in others)


def test_definition_is_in_the_jobs_environment(stand_in: StandIn) -> None:
    tb, home = stand_in.tb, stand_in.home
    assert tb.run(["salloc", "-N1", "--pvc=good:4", "sh", "-c", f"{SHOW}; srun sh -c '{SHOW}'"]).out.split() == [
        "PVC_DEFINITION=good:4",
        "PVC_DEFINITION=good:4",
    ]
    assert tb.run(["srun", "-N1", "--pvc=good:1", "sh", "-c", SHOW]).out.strip() == "PVC_DEFINITION=good:1"
    for options, definition in (([], "good:2"), (["--export=NONE"], "good:2"), (["--pvc=good:3"], "good:3")):
        (home / "job.sh").write_text(f"#!/bin/sh\n#SBATCH --pvc=good:2\n{SHOW}\n")
        tb.run(["sbatch", "--wait", "-N1", "-o", "job.out", *options, "job.sh"])
        assert (home / "job.out").read_text().strip() == f"PVC_DEFINITION={definition}"


def test_step_cannot_have_the_option(stand_in: StandIn) -> None:
    done = stand_in.tb.run(["salloc", "-N1", "srun", "--pvc=good:1", "true"], check=False)
    assert done.code == 1
    assert re.search(r"pvc: --pvc is for a whole job, and srun in job \d+ makes a step", done.err)


def test_job_inside_a_job_is_another_one(stand_in: StandIn) -> None:
    tb = stand_in.tb
    inner = f"sbatch --wait -N1 -o inner.out --wrap '{SHOW}; true'"
    tb.run(["salloc", "-N1", "-w", "n1", "--pvc=good:4", "sh", "-c", inner])
    assert (stand_in.home / "inner.out").read_text() == ""
    tb.wait_no_jobs()
    assert len(list(stand_in.directory.glob("setup-*"))) == 1


def test_heterogeneous_job_that_does_not_fit_is_refused(stand_in: StandIn) -> None:
    before = last_job(stand_in.tb)
    for words, text in (
        (["-N1", ":", "-N1", "--pvc=good:1"], "one --pvc describes all components"),
        (["-N1", "--pvc=good:1", ":", "-N1", "--pvc=sized:1"], "one --pvc describes all components"),
        (["-N1", "--pvc=good:4", ":", "-N1"], "good:4 has VMs of 1 size(s), but the job has 2 components"),
    ):
        done = stand_in.tb.run(["salloc", *words, "true"], check=False)
        assert done.code == 1
        assert text in done.err
    assert last_job(stand_in.tb) == before


def test_each_component_learns_from_slurm_where_the_others_are(stand_in: StandIn) -> None:
    tb = stand_in.tb
    # A text of the user's own in its place does not come through.
    env = {"PVC_HET_COMPONENTS": "1/evil/9", "SPANK_PVC_HET_COMPONENTS": "1/evil/9"}
    # A component that ends before its node has heard of it runs no prolog there.
    begun = "until [ $(ls stand-in/setup-[0-9]* | wc -l) = 3 ]; do sleep 0.1; done"
    words = ["timeout", "50", "sh", "-c", begun]
    tb.run(["salloc", "-n1", "-c2", "--pvc=sized:1", ":", "-N2", "-n2", "-c1", *words], env=env)
    tb.wait_no_jobs()
    found = {}
    for path in stand_in.directory.glob("setup-[0-9]*"):
        _, job, node = path.name.split("-")
        told = dict(line.split("=", 1) for line in path.read_text().splitlines())
        found[node] = int(job)
        leader = int(told["SLURM_HET_JOB_ID"])
        assert told["SPANK_PVC_REQUEST"] == "1;sizes=1:2,2:1;nat:3"
        assert re.fullmatch(rf"{leader}/n\d/2;{leader + 1}/n\S+/1\(x2\)", told["PVC_HET_COMPONENTS"])
    assert sorted(found) == ["n1", "n2", "n3"]
    assert sorted(found.values()) == [leader, leader + 1, leader + 1]


def test_failed_prolog_drains_its_node_with_a_reason(stand_in: StandIn) -> None:
    # A node that has not heard of a job when that fails has no epilog either.
    others = "until ls setup-$SLURM_JOB_ID-n1 setup-$SLURM_JOB_ID-n3 >/dev/null 2>&1; do sleep 0.1; done"
    stand_in.hook("setup", "n2", f"{others}; echo 'cannot create a bridge: no such device' >&2; exit 6")
    assert "Prolog failure on node n2" in stand_in.fail()
    assert stand_in.reasons() == {"n2": "pvc: cannot create a bridge: no such device"}
    assert "pvc: cannot create a bridge: no such device" in stand_in.tb.log("n2", "slurm/slurmd")
    assert sorted(stand_in.told("teardown")) == ["n1", "n2", "n3"]  # the epilog runs on all


def test_failed_epilog_drains_its_node_with_a_reason(stand_in: StandIn) -> None:
    stand_in.hook("teardown", "n1", "echo 'cannot remove a bridge' >&2; exit 6")
    stand_in.tb.run(["srun", "-N3", "--pvc=good:4", "true"])
    stand_in.tb.wait_no_jobs()
    wait_until(stand_in.reasons, 120, "nothing is drained")
    assert stand_in.reasons() == {"n1": "pvc: cannot remove a bridge"}


def test_prolog_of_a_job_that_has_ended_undoes_its_work(stand_in: StandIn) -> None:
    # The epilog finds nothing to do here, as one does that comes before the set-up.
    ended = "until squeue -h -j $SLURM_JOB_ID -t CG | grep -q .; do sleep 0.1; done"
    stand_in.hook("setup", "n1", f"scancel $SLURM_JOB_ID; {ended}; rm -r /run/stand-in/jobs/$SLURM_JOB_ID; exit 0")
    # It lasts until the prolog has begun, for none runs of a job that has ended.
    begun = "until ls stand-in/setup-$SLURM_JOB_ID-n1; do sleep 0.1; done; sleep 3"
    words = ["timeout", "50", "sh", "-c", begun]
    stand_in.tb.run(["salloc", "-N2", "-w", "n[1-2]", "--pvc=good:2", *words], check=False)
    stand_in.tb.wait_no_jobs()
    assert "n1" in stand_in.told("teardown")
    assert stand_in.reasons() == {}


def test_prolog_that_hangs_ends_at_the_timeout(stand_in: StandIn) -> None:
    # On this node alone: the others have the time that they need.
    hasty = stand_in.directory / "hasty.conf"
    hasty.write_text(stand_in.plugstack.read_text().rstrip() + " timeout=2\n")
    stand_in.tb.root(["mount", "--bind", "/home/student/stand-in/hasty.conf", "/etc/slurm/plugstack.conf"], "n3")
    try:
        stand_in.hook("setup", "n3", "sleep 4711")
        assert "Prolog failure on node n3" in stand_in.fail()
    finally:
        stand_in.tb.root(["umount", "/etc/slurm/plugstack.conf"], "n3")
    assert stand_in.reasons() == {"n3": "pvc: pvc-node setup could not be run or did not end in time"}
    assert "sleep 4711" not in stand_in.tb.root(["ps", "-eo", "args"], "n3")


def test_wrong_arguments_refuse_the_job(stand_in: StandIn) -> None:
    stand_in.arguments("colour=red", "timeout=soon")
    assert stand_in.tb.run(["srun", "-N1", "true"]).err == ""
    done = stand_in.tb.run(["srun", "-N1", "--pvc=good:1", "true"], check=False)
    assert done.code == 1
    assert "unknown argument 'colour=red'" in done.err
    assert "timeout= wants 1 to 3600 seconds" in done.err


@pytest.mark.parametrize(
    "request_text",
    ["1;nat:4\\nSLURM_JOB_UID=0\\n", "", "nonsense", "\\xff\\xfe", "1;nat\\xe2\\x80\\x8b:1", "1;nat:99999"],
    ids=["newline", "empty", "nonsense", "bytes", "invisible", "too-many"],
)
def test_hostile_request_drains_no_node(tb: Testbed, tmp_path: Path, request_text: str) -> None:
    """Users can load a plug-in of their own where they submit, so the request is theirs to write."""
    home = tb.home()
    (tmp_path / "hostile.c").write_text(HOSTILE)
    headers = ["-isystem", osroot.find_root(OS).path / "usr" / "include"] if OS else []
    argv = ["gcc", "-shared", "-fPIC", *headers, f'-DREQUEST="{request_text}"', "-o", home / "hostile.so"]
    argv.append(tmp_path / "hostile.c")
    subprocess.run(argv, check=True)
    (home / "hostile.so").chmod(0o755)
    (home / "plugstack.conf").write_text("required /home/student/hostile.so\n")
    conf = (tb.place.state_dir / "etc" / "slurm" / "slurm.conf").read_text()
    mine = re.sub(r"(?m)^PlugStackConfig=.*$", "PlugStackConfig=/home/student/plugstack.conf", conf)
    (home / "slurm.conf").write_text(mine)
    done = tb.run(["srun", "-N2", "hostname"], env={"SLURM_CONF": "/home/student/slurm.conf"}, check=False)
    tb.wait_no_jobs()
    assert done.code == 0, done.err
    tb.wait_idle()


def test_plugin_under_test_is_this_checkouts(tb: Testbed) -> None:
    text = (tb.place.state_dir / "etc" / "slurm" / "plugstack.conf").read_text()
    # For another release's Slurm a testbed compiles it anew.
    assert text.startswith(f"required {f'{OWN}/bin' if OS else f'{TOP}/spank'}/pvc.so ")
