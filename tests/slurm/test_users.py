# SPDX-License-Identifier: Apache-2.0
"""What users bring with them: environments and ssh configurations, each alone, beside the commands that people use."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from pvc.model.request import Request, SetRequest
from pvc.ops.wholenodes import is_packed
from pvc.parse import parse_cpus_per_node
from pvc.plan.placement import place
from pvc.slurm.nodes import expand_nodes
from tests.slurm.clusters import Cluster
from tests.slurm.images import import_agent
from tests.slurm.testbed import Testbed
from tests.waits import wait_until

# A cluster without a disk: its VM boots in no time and never answers.
TEMPLATES = "pxe: {resource-set: nat, memory: 64M}\ntwice: {resource-set: nat, memory: 80M, cores: 2}\n"
# Beside a running cluster: what can be asked of it, in all of these environments.
QUESTIONS = """
SQUEUE_PARTITION=x SQUEUE_STATES=PD SQUEUE_FORMAT=%i SQUEUE_USERS=nobody SQUEUE_SORT=x SQUEUE_ALL=1 SINFO_FORMAT=%N
SINFO_PARTITION=x SINFO_STATES=down SLURM_TIME_FORMAT=relative SLURM_CLUSTERS=other SLURM_CONF=/nope SLURM_DEBUG=9
SLURM_JOB_ID=x SCANCEL_INTERACTIVE=1 SCANCEL_STATE=PD PYTHONHOME=/nope PYTHONPATH=/home/student/traps LC_ALL=no_SUCH
LC_ALL=de_DE.ISO-8859-1 TERM=nope TERM=dumb SHELL=/nope TMPDIR=/nope XDG_CACHE_HOME=/nope XDG_RUNTIME_DIR=/nope
SSH_AUTH_SOCK=/nope SSH_ASKPASS=/nope SSH_ASKPASS_REQUIRE=force
"""
# For a job: most are wishes for its steps, as they come from a job around, and must not become those of ours.
WISHES = """
SLURM_GPUS=2 SLURM_CPUS_PER_GPU=1 SLURM_CONSTRAINT=x SLURM_DEBUG=2 SLURM_HET_SIZE=2 SLURM_HOSTFILE=/nope
SLURM_EXPORT_ENV=NONE SLURM_JOB_ID=1 SLURM_NTASKS=7 SLURM_MPI_TYPE=x SLURM_PROLOG=/nope SALLOC_HINT=nomultithread
SALLOC_CPUS_PER_GPU=1 SALLOC_MEM_PER_NODE=1G SBATCH_MEM_PER_CPU=1 TMPDIR=/nope LC_ALL=no_SUCH PYTHONHOME=/nope
"""
# Said before there is a job: the exit code and a part of what is said.
REFUSED = {
    "SLURM_CONF=/nope": (4, "SLURM_CONF is '/nope'"),
    "HOME=/nope": (6, "/nope/.pvc/jobs is no place for clusters"),
    "SHELL=/nope": (2, "the shell is '/nope'"),
    "SHELL=/bin/false": (2, "that is no shell"),
    "SALLOC_PARTITION=nope": (1, "invalid partition specified: nope"),
    "SALLOC_TIMELIMIT=nope": (255, "Invalid --time specification"),
}
# No message is about pvc's insides, or Slurm's
INSIDE = re.compile(r"internal error|Traceback|\w+\.(?:py|c)\b|_ssl|s_p_parse|Errno")


def check_words(text: str) -> None:
    assert INSIDE.search(text) is None, text


@pytest.fixture
def traps(tb: Testbed) -> Iterator[None]:
    """Templates, and modules that nobody should import."""
    tb.run("mkdir -p .pvc traps; echo 'raise SystemExit(99)' | tee traps/yaml.py traps/click.py >traps/json.py")
    (tb.home() / ".pvc" / "templates.yaml").write_text(TEMPLATES)
    yield
    tb.run("rm -rf traps .pvc/templates.yaml .ssh")


@pytest.fixture(scope="module")
def agent(testbed: Testbed, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The template of the small guest with the agent in it."""
    return import_agent(testbed, tmp_path_factory.mktemp("agent"))


@pytest.mark.usefixtures("traps")
def test_a_running_cluster_in_any_environment(tb: Testbed, agent: str) -> None:
    name = ("-J", "two\nlines JobState=COMPLETED", "--comment", "a\u2028b\n")
    cluster = Cluster(tb, agent, *name, size=("-c", "1"))
    try:
        cluster.wait_running()
        job, keys = cluster.job_id, tb.home() / ".pvc" / "jobs" / str(cluster.job_id) / "tls.key"
        tb.run(["pvc", "wait", "-j", str(job), "--for", "agent", "--timeout", "300s"], timeout=360)
        commands = {
            "pvc ps": 0,
            f"pvc status -j {job}": 0,
            "pvc ps --json": 0,
            f"pvc logs -j {job} vm0": 0,
            # Its code is the guest's, and what it says comes from there.
            f"pvc exec -j {job} vm0 -- sh -c 'echo said by $(hostname) >&2; exit 7'": 7,
            f"pvc cp -j {job} letter vm0:/tmp/there": 0,
            f"pvc cp -j {job} vm0:/tmp/there back && cmp letter back && rm back": 0,
        }
        # One shell for all: it prints the case, the exit code of each command, and what they say.
        script = f'for each in {" ".join(QUESTIONS.split())}; do echo "== $each"\n' + "".join(
            f'env "$each" sh -c {shlex.quote(line)} 2>&1 >/dev/null </dev/null; echo "rc $?"\n' for line in commands
        )
        said = tb.run(f"echo dear guest >letter; {script}done; rm letter", timeout=600).out
        check_words(said)
        parts = said.split("== ")[1:]
        assert len(parts) == len(QUESTIONS.split())
        for part in parts:
            case = part.split()[0]
            codes = [int(code) for code in re.findall(r"^rc (\d+)$", part, re.MULTILINE)]
            # Who asks Slurm says what is wrong; the VMs themselves are there.
            lost = [4 if line.startswith("pvc ps") else code for line, code in commands.items()]
            assert codes == (lost if case == "SLURM_CONF=/nope" else list(commands.values())), part
            assert "said by vm0" in part
            assert keys.exists(), f"{case} lost the cluster's keys"
        assert str(job) in tb.run(["env", "SQUEUE_PARTITION=x", "pvc", "ps"]).out
        tb.run(["env", "SCANCEL_INTERACTIVE=1", "pvc", "stop", "-j", str(job)])
        cluster.end()
    finally:
        cluster.close()
    wait_until(lambda: not keys.exists(), 60, "the directory of an ended cluster is there")


@pytest.mark.usefixtures("traps")
def test_jobs_in_any_environment(tb: Testbed) -> None:
    lines = [
        f'echo "== {each}"; env {each} pvc alloc -Q -E true pxe </dev/null 2>&1; echo "rc $?"'
        for each in WISHES.split()
    ]
    for part in tb.run("\n".join(lines), timeout=600).out.split("== ")[1:]:
        check_words(part)
        assert part.splitlines()[1:] == ["rc 0"], part
    for each, (code, text) in REFUSED.items():
        done = tb.run(["env", each, "pvc", "alloc", "-Q", "pxe"], check=False)
        check_words(done.err)
        assert (done.code, text in done.err) == (code, True), done
    assert tb.jobs() == []


@pytest.mark.usefixtures("traps")
def test_jobs_inside_of_jobs(tb: Testbed) -> None:
    inner = "pvc alloc -Q -E true pxe; echo alloc $?; pvc batch -W -Q -E true pxe; echo batch $?"
    inner += "; srun -n1 -N1 --overlap true; echo srun $?"
    for outer in ("pxe", "pxe,twice"):
        said = tb.run(["pvc", "alloc", "-Q", outer, "sh", "-c", inner], timeout=180).out
        assert said.splitlines() == ["alloc 0", "batch 0", "srun 0"]


@pytest.mark.usefixtures("traps")
def test_limits_and_streams_of_a_login(tb: Testbed) -> None:
    """A login's ulimit is not for VMs; streams that are closed or full are no fault of a cluster's."""
    for line in (
        "ulimit -v 1000000; pvc alloc -Q -E true pxe",
        "ulimit -n 64; pvc alloc -Q -E true pxe",
        "pvc alloc -Q -E true pxe <&-",
        "pvc alloc -E true pxe 2>/dev/full",
        "pvc alloc -E true pxe 2>&- >&-",
        "pvc batch -W -Q -E true pxe <&-",
    ):
        done = tb.run(line, check=False, timeout=120)
        assert (done.code, done.err) == (0, ""), line


SCRIPT = """#!/bin/sh
#SBATCH -J mine --time=7 --mem 9G
#SBATCH -o said-by-job
squeue -h -j $SLURM_JOB_ID -o "%j %l"
"""


@pytest.mark.usefixtures("traps")
def test_lines_of_a_script_count(tb: Testbed) -> None:
    script = tb.home() / "job.sh"
    script.write_text(SCRIPT)
    script.chmod(0o755)
    done = tb.run(["pvc", "batch", "--wait", "-Q", "-E", "./job.sh", "pxe"], timeout=120)
    assert done.code == 0
    assert tb.run(["cat", "said-by-job"]).out.splitlines()[-1] == "mine 7:00"
    tb.run(["rm", "job.sh", "said-by-job"])


@pytest.mark.usefixtures("traps")
def test_an_interpreter_that_only_the_nodes_have(tb: Testbed) -> None:
    """It is a warning where the job is queued; the node that lacks it, too, says so before VMs boot."""
    script = tb.home() / "job.sh"
    batch = ["pvc", "batch", "--wait", "-Q", "-o", "said-by-job", "-E", "./job.sh", "pxe"]
    for node in tb.nodes():
        tb.root("mkdir -p /run/site; ln -sf /bin/sh /run/site/sh", node)
    try:
        for place, code, said in (
            ("site", 0, "it ran"),
            ("nowhere", 2, "'/run/nowhere/sh' in its first line, and there"),
        ):
            script.write_text(f"#!/run/{place}/sh\necho it ran\n")
            script.chmod(0o755)
            done = tb.run(batch, timeout=120, check=False)
            assert done.code == code, done
            assert (
                f"wants the interpreter '/run/{place}/sh' in its first line, which this machine does not have"
                in done.err
            )
            assert said in tb.run(["cat", "said-by-job"]).out
        done = tb.run(["pvc", "alloc", "-Q", "-E", "./job.sh", "pxe"], check=False)
        assert (done.code, "and there is none" in done.err) == (2, True)
    finally:
        for node in tb.nodes():
            tb.root("rm -r /run/site", node)
        tb.run("rm -f job.sh said-by-job")


HOSTILE = """Include ~/.pvc/jobs/*/ssh_config
Host *
    RemoteCommand false
    HostKeyAlgorithms ssh-rsa
    PubkeyAuthentication no
    ControlMaster auto
    ControlPath ~/.ssh/one-for-all
    ControlPersist yes
    ProxyCommand false
    HostName nowhere
    Port 9
    LogLevel QUIET
"""


@pytest.mark.usefixtures("traps")
def test_the_users_ssh_configuration_decides_nothing(tb: Testbed, debian: str) -> None:
    cluster = Cluster(tb, debian, "--no-wait", size=("-c", "1"))
    try:
        cluster.wait_running().wait_reachable()
        tb.run("mkdir -m 700 .ssh; ssh-keygen -q -t ed25519 -N secret -f .ssh/id_ed25519")
        tb.run("cat >.ssh/config", stdin=HOSTILE)  # ssh wants it to be its user's
        key = "ssh-keygen -q -t ed25519 -N '' -f k$i; ssh-add -q k$i"
        agent = f"eval $(ssh-agent) >/dev/null; for i in 1 2 3 4 5 6 7 8; do {key}; done; "
        end = "; code=$?; ssh-agent -k >/dev/null; rm -f k? k?.pub; exit $code"
        tb.run("pvc ssh-config >/dev/null && echo x >file")
        for line in (
            "pvc ssh vm0 hostname",
            "SHELL=/nope pvc ssh vm0 hostname",
            "pvc scp file vm0:/tmp/file && pvc ssh vm0 hostname",
            "ssh vm0 hostname",
            f"scp -q file vm0.{cluster.job_id}:/tmp/file && ssh vm0 hostname",
        ):
            done = tb.run(f"{agent}{line}{end}", timeout=120)
            assert done.out == "vm0\n", (line, done)
        assert not (tb.home() / ".ssh" / "one-for-all").exists()
    finally:
        cluster.close()


def test_words_that_are_looked_for() -> None:
    """The check itself: what it finds, and what it lets pass."""
    for text in ("internal error: X", "x (_ssl.c:99)", "error: s_p_parse_file: x", f'File "{Path(__file__).name}"'):
        with pytest.raises(AssertionError):
            check_words(text)
    check_words("pvc: SLURM_CONF is '/nope' in the environment, and there is no file that can be read")


# Options for salloc, with the number of tasks, as pvc gives them.
MIXES = """
-n4|-n4 -c2|-N2 -n4|-N2 -n5 -c2|-n3 -c8|-n4 -c7 -N3|-N3 -n5 -c5|-n20|-n40 -c1|-N2-3 -n6|-N3 -n7 -c2
-N2 --exclusive -n4|-N2 --exclusive -n4 -c4|-N3 --exclusive -n5 -c5|-N3 --exclusive -n7 -c3|-n4 --exclusive
-n20 --exclusive|-N2 --exclusive --ntasks-per-node=2 -n4|-N3 --exclusive --ntasks-per-node=4 -n6|-n6 --ntasks-per-node=4
-N3 --ntasks-per-node=2 -n6|-N3 --ntasks-per-node=2 -n5|-n6 --exclusive --ntasks-per-node=2|-N1-3 -n6 --exclusive
-N3 --distribution=cyclic -n7|-N3 --exclusive --distribution=cyclic -n7|-N3 --exclusive --distribution=block -n7
-N3 --distribution=plane=2 -n7|-N2 --exclusive --distribution=plane=3 -n7|-N3 --exclusive --distribution=block,Pack -n7
-N3 --distribution=Pack -n7|-N3 --exclusive --distribution=cyclic,Pack -n7|-n3 --cores-per-socket=4
-N2 -n4 --sockets-per-node=2|-N2 -n4 --ntasks-per-socket=1|-N2 --exclusive -n3 --ntasks-per-socket=1
-n2 --exclusive --mem=500M|-N2 -n4 --mem=500M|-N2 --exclusive -n4 --mem=0|-N2 -n4 --spread-job|-n6 --use-min-nodes
-N1 -n8 --threads-per-core=1|-N1 -n3 --hint=nomultithread|-n4 --mem-per-cpu=700M -p narrow
-N2 -n4 --mem-per-cpu=700M -p narrow
-N3 -n6 -w n1,n2,n3|-n6 -w n3,n1|-n6 -N2 -x n1|-n4 -N2 --contiguous|-p whole -N2 -n4|-p whole -n18 -c2
"""
PARTITIONS = ("whole OverSubscribe=EXCLUSIVE", "narrow MaxMemPerCPU=400")


@pytest.fixture
def partitions(testbed: Testbed, traps: None) -> Iterator[None]:
    """A partition that gives nodes whole, and one where memory has to be paid for with cores."""
    del traps
    for words in PARTITIONS:
        testbed.root(f"scontrol create PartitionName={words.replace(' ', ' Nodes=n1,n2,n3 ')} State=UP", "login")
    yield
    testbed.wait_no_jobs()
    for words in PARTITIONS:
        testbed.root(f"scontrol delete PartitionName={words.partition(' ')[0]}", "login")


def find_number(words: str, option: str, default: int) -> int:
    found = re.search(rf"(?:^| ){option}(\d+)(?: |$)", words)
    return int(found[1]) if found is not None else default


@pytest.mark.usefixtures("partitions")
def test_vms_are_placed_as_slurm_places_tasks(tb: Testbed) -> None:
    """By Slurm's own answer, SLURM_TASKS_PER_NODE; it may have room for more tasks than it was asked for."""
    mixes = [mix for line in MIXES.split("\n") for mix in line.split("|") if mix]
    tell = "echo $SLURM_JOB_NODELIST $SLURM_JOB_CPUS_PER_NODE $SLURM_TASKS_PER_NODE"
    answers = tb.run("\n".join(f"salloc --quiet {mix} sh -c '{tell}' </dev/null" for mix in mixes), timeout=600).out
    wrong = []
    for mix, answer in zip(mixes, answers.splitlines(), strict=True):
        nodes, cpus, tasks = answer.split()
        request = Request(
            (SetRequest("nat", find_number(mix, "-n", 0)),),
            find_number(mix, "-c", 1),
            pack=is_packed(re.findall(r"--distribution=(\S+)", mix)),
            whole="--exclusive" in mix or "-p whole" in mix,
        )
        found = [share.count for share in place(expand_nodes(nodes), parse_cpus_per_node(cpus), request).shares]
        most = parse_cpus_per_node(tasks)
        fits = all(count <= limit for count, limit in zip(found, most, strict=True))
        if list(most) != found and not (sum(most) > request.count and fits):
            wrong.append(f"{mix}: {answer}: {found}")
    assert not wrong, "\n".join(wrong)


SHARES = """#!/usr/bin/python3
import json, subprocess
vms = json.loads(subprocess.run(["pvc", "status", "--json"], stdout=-1, check=True).stdout)["vms"]
print([(vm["node"], vm["memory_mib"]) for vm in vms])
"""


@pytest.mark.usefixtures("partitions")
def test_vms_get_what_they_need_on_whole_nodes_too(tb: Testbed) -> None:
    script = tb.home() / "shares.py"
    script.write_text(SHARES)
    script.chmod(0o755)

    def shares(*words: str) -> list[int]:
        """VMs of each node, in the order of the nodes; all have the memory that was wished."""
        done = tb.run(["pvc", "alloc", "-Q", "-E", "./shares.py", *words])
        places = ast.literal_eval(done.out)
        wanted = int(words[words.index("-m") + 1].removesuffix("M"))
        assert {memory for _, memory in places} == {wanted}, done.out
        return [sum(node == name for node, _ in places) for name in sorted({node for node, _ in places})]

    assert shares("-N2", "--exclusive", "--ntasks-per-node=2", "-m", "64M", "pxe:4") == [2, 2]
    assert shares("-N2", "--exclusive", "-m", "1200M", "pxe:4") == [2, 2]
    assert shares("--exclusive", "-m", "1200M", "pxe:3") == [3]
    assert shares("-p", "whole", "-m", "1200M", "pxe:3") == [3]
    assert shares("-p", "whole", "-N2", "-m", "1200M", "pxe:3") == [2, 1]
    assert shares("-p", "whole", "-m", "1200M", "pxe") == [1]
    # Each VM takes two or more of the cores of its node.
    assert sum(shares("-p", "narrow", "-m", "600M", "pxe:4")) == 4
    done = tb.run(["pvc", "alloc", "-Q", "-p", "whole", "-m", "6G", "-E", "./shares.py", "pxe:3"], check=False)
    assert done.code == 4
    assert "the job has 16000 MiB of memory on n" in done.err
    assert "hint: spread them over more nodes with -N" in done.err
    check_words(done.err)
    done = tb.run(["pvc", "alloc", "-Q", "-O", "pxe:3"], check=False)
    assert (done.code, "each VM has cores of its own" in done.err) == (2, True), done.err


@pytest.mark.usefixtures("partitions")
@pytest.mark.parametrize("how", ["salloc", "sbatch"])
def test_jobs_by_hand_have_their_vms_where_their_tasks_are(tb: Testbed, how: str) -> None:
    tell = 'pvc start -Q && echo "$SLURM_TASKS_PER_NODE" && ./shares.py'
    script = tb.home() / "shares.py"
    script.write_text(SHARES)
    script.chmod(0o755)
    for words in ("-N2 -n4 --exclusive", "-N2 -n5 -p whole", "-N3 -n5 --exclusive --ntasks-per-node=2",
                  "-N3 -n7 --exclusive --distribution=block,Pack", "-N2 -n5 -c2"):  # fmt: skip
        count = find_number(words, "-n", 0)
        if how == "salloc":
            out = tb.run(f"salloc -Q --pvc=pxe:{count} --mem-per-cpu=500 {words} sh -c '{tell}'", timeout=120).out
        else:
            (tb.home() / "job.sh").write_text(f"#!/bin/sh\n#SBATCH {words}\n{tell}\n")
            tb.run(f"sbatch -Q -W -o said-by-job --pvc=pxe:{count} --mem-per-cpu=500 job.sh", timeout=120)
            out = tb.run(["cat", "said-by-job"]).out
        tasks, places = out.splitlines()
        nodes = [node for node, _ in ast.literal_eval(places)]
        found = [nodes.count(name) for name in sorted(set(nodes))]
        most = parse_cpus_per_node(tasks)
        assert list(most) == found or sum(most) > count, (words, out)


@pytest.mark.usefixtures("traps")
def test_a_job_that_stands_still_or_has_ended_is_told_at_once(tb: Testbed) -> None:
    cluster = Cluster(tb, "pxe:2", "-N2", size=()).wait_running()
    job = str(cluster.job_id)
    questions = (["status"], ["wait"], ["wait", "--for", "agent"], ["exec", "-w", "vm0", "true"], ["reset", "vm0"],
                 ["logs", "vm0"], ["cp", "/etc/passwd", "vm0:/tmp"], ["monitor", "vm0", "info", "status"],
                 ["console", "--log", "vm0"])  # fmt: skip
    try:
        for word, state in ((f"job {job} is suspended, and so are its VMs", "suspend"), ("has ended", "cancel")):
            if state == "suspend":
                tb.root(["scontrol", "suspend", job], "login")
            else:
                tb.root(["scontrol", "resume", job], "login")
                # Its directory stays, as if the launcher had died with its machine.
                tb.run(f"cp -a .pvc/jobs/{job} kept; scancel {job}")
                tb.wait_no_jobs()
                tb.run(f"mv kept .pvc/jobs/{job}")
            for words in questions:
                done = tb.run(["pvc", words[0], "-j", job, *words[1:]], check=False)
                assert (done.code, word in done.err) == (4, True), (words, done)
                check_words(done.err)
    finally:
        tb.run(f"rm -rf .pvc/jobs/{job} kept", check=False)
        cluster.close()


@pytest.mark.usefixtures("traps")
def test_a_suspended_cluster_is_stopped(tb: Testbed) -> None:
    cluster = Cluster(tb, "pxe:2", "-N2", size=()).wait_running()
    try:
        tb.root(["scontrol", "suspend", str(cluster.job_id)], "login")
        done = tb.run(["pvc", "stop", "-j", str(cluster.job_id)], check=False)
        assert done.code == 0, done.err
        check_words(done.err)
        tb.wait_no_jobs()
    finally:
        cluster.close()


PROGRAM = """
import os, subprocess, sys, time
from pvc import Cluster
from pvc.errors import EndedError, JobTimeoutError

try:
    Cluster.allocate("pxe", slurm=["--begin=now+1hour"], timeout_s=float(sys.argv[1]))
except TimeoutError as err:
    print(type(err).__name__, err, flush=True)
calls = [
    lambda: cluster.status(), lambda: cluster.exec(["true"]), lambda: cluster.wait(until="agent"),
    lambda: cluster.copy("/etc/passwd", "vm0:/tmp"), lambda: cluster.logs("vm0"), lambda: cluster.reset("vm0"),
    lambda: cluster.stop(["vm0"]), lambda: cluster.forward("0:vm0:80").__enter__(),
]
with Cluster.allocate("pxe:2", nodes=2) as cluster:
    cluster.stop([])
    child = os.fork()
    if not child:
        time.sleep(900)
    subprocess.run(["scancel", str(cluster.job_id)], check=True)
    try:
        cluster.wait(timeout_s=300)
    except EndedError as err:
        print("told", flush=True)
for call in calls:
    try:
        call()
    except EndedError as err:
        print(err, flush=True)
cluster.stop()
with Cluster.allocate("pxe") as other:
    print(Cluster.find(other.job_id), flush=True)
    os.kill(os.getpid(), 9)
"""


@pytest.mark.usefixtures("traps")
def test_a_program_hears_of_ends_and_of_times_that_run_out(tb: Testbed) -> None:
    """And its job ends with it although a child that it has forked lives on."""
    (tb.home() / "program.py").write_text(PROGRAM)
    done = tb.run([tb.python, "program.py", "15"], check=False, timeout=300)
    lines = done.out.splitlines()
    try:
        assert re.fullmatch(
            r"JobTimeoutError the VMs do not run after 15 s: job \d+ is pending \(BeginTime\)", lines[0]
        )
        assert lines[1] == "told", done
        assert re.fullmatch(r"cluster \d+ has ended: this program has closed it", lines[2]), done
        assert lines[2:-1] == [lines[2]] * 8, done
        assert re.fullmatch(r"<Cluster \d+ \(pxe\)>", lines[-1]), done
        check_words(done.out + done.err)
        tb.wait_no_jobs()
    finally:
        tb.root("pkill -9 -f [p]rogram.py", "login", check=False)
