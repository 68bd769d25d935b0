# SPDX-License-Identifier: Apache-2.0
"""The main job, end to end, in each way to ask for it; and the commands for a running cluster."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.slurm.terminal import Terminal
from tests.slurm.testbed import Snapshot, Testbed
from tests.waits import wait_until

LONG = 600.0


def write_script(tb: Testbed, text: str, name: str = "script.sh") -> Path:
    """A script in the user's home."""
    path = tb.home() / name
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)
    return path


def assert_nothing_left(tb: Testbed, before: dict[str, Snapshot]) -> None:
    tb.wait_no_jobs()
    tb.assert_clean(before)
    tb.wait_idle()
    jobs = tb.home() / ".pvc" / "jobs"
    tb.run(["pvc", "ps"])
    assert not jobs.exists() or list(jobs.iterdir()) == []


def test_alloc_runs_a_script_beside_the_vms(tb: Testbed, small: str, before: dict[str, Snapshot]) -> None:
    write_script(tb, 'echo "<$1|$2|$PVC_LAUNCH>"; pvc ps --json; pvc status --json; exit 33')
    done = tb.run(["pvc", "alloc", "-N", "3", "-E", "./script.sh", f"{small}:4", "a b", "$HOME"], check=False)
    assert done.code == 33, done.err
    first, rest = done.out.split("\n", 1)
    assert first == "<a b|$HOME|>"
    decoder = json.JSONDecoder()
    listed, end = decoder.raw_decode(rest)
    status = json.loads(rest[end:])
    assert [(each["state"], each["vms"], each["definition"]) for each in listed] == [("running", 4, f"{small}:4")]
    assert [vm["name"] for vm in status["vms"]] == ["vm0", "vm1", "vm2", "vm3"]
    assert [vm["node"] for vm in status["vms"]] == ["n1", "n1", "n2", "n3"]
    assert {vm["phase"] for vm in status["vms"]} <= {"booting", "reachable"}
    assert len({vm["addresses"][0] for vm in status["vms"]}) == 4
    assert "4 VMs: booting after" in done.err
    assert_nothing_left(tb, before)


def test_batch_is_the_same_in_one_word(tb: Testbed, small: str, before: dict[str, Snapshot]) -> None:
    write_script(tb, 'echo "on $(hostname) <$1>"; pvc wait --timeout 300s && pvc status; exit 9')
    options = ["--wait", "-N2", "-o", "out.txt", "-J", "mine"]
    done = tb.run(["pvc", "batch", *options, "-E", "./script.sh", f"{small}:2", "it's"], check=False, timeout=LONG)
    out = (tb.home() / "out.txt").read_text()
    assert done.code == 9, out + done.err
    assert re.fullmatch(r"Submitted batch job \d+\n", done.out)
    assert "on n1 <it's>" in out
    assert len(re.findall(r"^vm\d +n\d +reachable", out, re.MULTILINE)) == 2
    assert_nothing_left(tb, before)


def test_start_in_a_job_that_sbatch_prepared(tb: Testbed, small: str, before: dict[str, Snapshot]) -> None:
    write_script(
        tb,
        """pvc start || exit 1
        pvc start; echo "again: $?"
        pvc stop --grace 0s || exit 3
        pvc status; echo "stopped: $?"
        pvc start --wait || exit 4
        pvc status
        exit 5""",
    )
    argv = ["sbatch", "--wait", "-N2", "-n2", "-o", "out.txt", f"--pvc={small}:2", "script.sh"]
    done = tb.run(argv, check=False, timeout=LONG)
    out = (tb.home() / "out.txt").read_text()
    assert done.code == 5, out
    assert "again: 4" in out
    assert "stopped: 4" in out
    assert "a cluster runs already in job" in out
    assert len(re.findall(r"^vm\d +n\d +reachable", out, re.MULTILINE)) == 2
    assert_nothing_left(tb, before)


def test_start_needs_a_prepared_job(tb: Testbed, small: str) -> None:
    done = tb.run(["srun", "-n1", "pvc", "start", small], check=False)
    assert "this job has no networks for VMs" in done.err
    done = tb.run(["salloc", "-n1", f"--pvc={small}", "pvc", "start", f"{small}:2"], check=False)
    assert done.code == 2
    assert "needs other networks or other counts" in done.err


def test_a_shell_with_a_prompt(tb: Testbed, small: str, before: dict[str, Snapshot]) -> None:
    terminal = Terminal(tb.argv(["pvc", "alloc", small]))
    terminal.expect("waiting until the VMs answer")
    terminal.expect(r"reachable", LONG)
    terminal.expect(r"\(pvc/\d+\) ")
    terminal.type("pvc ps\n")
    terminal.expect(f"running +1 .*{small}")
    terminal.expect(r"\(pvc/\d+\) ")
    terminal.type("\x03")
    # readline (8.2) asks for bracketed paste when it has handled Ctrl-C. If that came just before it waited for a key,
    # it waits for one still, and bash forgets that key with the line: it asks again after it.
    terminal.expect(r"\x1b\[\?2004h")
    terminal.type("\r")
    terminal.expect(r"\x1b\[\?2004h\(pvc/\d+\) ")
    terminal.type("echo at $SLURM_JOB_ID; exit 6\n")
    terminal.expect(r"at \d+\r")
    assert terminal.wait() == 6
    assert_nothing_left(tb, before)


def test_ctrl_c_skips_the_waiting(tb: Testbed, small: str) -> None:
    terminal = Terminal(tb.argv(["pvc", "alloc", small]))
    terminal.expect("Ctrl-C for the shell at once")
    terminal.type("\x03")
    terminal.expect(r"\(pvc/\d+\) ")
    terminal.type("exit\n")
    assert terminal.wait() == 0


def test_ctrl_c_ends_a_script(tb: Testbed, small: str, before: dict[str, Snapshot]) -> None:
    write_script(tb, "echo beg''un; sleep 100")
    terminal = Terminal(tb.argv(["pvc", "alloc", "-E", "./script.sh", small]))
    terminal.expect("begun")
    terminal.type("\x03")
    assert terminal.wait() == 130
    assert_nothing_left(tb, before)


def test_ctrl_c_while_booting(tb: Testbed, small: str, before: dict[str, Snapshot]) -> None:
    terminal = Terminal(tb.argv(["pvc", "alloc", small, "true"]))
    terminal.expect("1 VM on")
    terminal.type("\x03")
    assert terminal.wait() in (0, 130)
    assert_nothing_left(tb, before)


class Running:
    """A cluster of three small VMs on two nodes whose script waits for a file."""

    def __init__(self, tb: Testbed, small: str) -> None:
        self.tb = tb
        (tb.home() / "go").unlink(missing_ok=True)
        (tb.home() / "id").unlink(missing_ok=True)
        write_script(tb, "echo $SLURM_JOB_ID > id.new; mv id.new id; while [ ! -e go ]; do sleep 0.1; done; exit 3")
        self.process: Any = tb.start(["pvc", "alloc", "-N2", "-Q", "-E", "./script.sh", f"{small}:3"])
        wait_until((tb.home() / "id").exists, 120, "the script has not started")
        self.job_id = (tb.home() / "id").read_text().strip()

    def pvc(self, *words: str, stdin: str = "", timeout: float = LONG, code: int = 0) -> str:
        done = self.tb.run(["pvc", *words], stdin=stdin, timeout=timeout, check=False)
        assert done.code == code, done.out + done.err
        return done.out + done.err

    def end(self) -> int:
        (self.tb.home() / "go").touch()
        self.process.communicate(timeout=300)
        code: int = self.process.returncode
        return code


@pytest.fixture
def running(tb: Testbed, small: str) -> Iterator[Running]:
    cluster = Running(tb, small)
    yield cluster
    if cluster.process.poll() is None:
        cluster.end()


def test_commands_for_a_running_cluster(running: Running) -> None:
    running.pvc("wait", "--timeout", "300s")
    rows = running.pvc("status", "vm[0-1]").splitlines()
    assert rows[0].split()[:3] == ["VM", "NODE", "PHASE"]
    assert [row.split()[:3] for row in rows[1:]] == [["vm0", "n1", "reachable"], ["vm1", "n1", "reachable"]]
    found = json.loads(running.pvc("status", "--json", "vm2"))
    assert found["cluster"]["definition"] == "small:3"
    assert [(vm["rank"], vm["node"], vm["ssh_port"] > 0) for vm in found["vms"]] == [(2, "n2", True)]
    assert "GUEST-READY" in running.pvc("console", "--log", "vm1")
    assert running.job_id in running.pvc("ps", "-a")
    assert "there is no vm9" in running.pvc("status", "vm9", code=2)
    assert "there is no vm9" in running.pvc("ssh", "vm9", code=2)
    # The small guest says ssh's banner and hangs up: the way to it is right, and ssh's own exit code is kept
    assert "Connection" in running.pvc("ssh", "vm2", "true", code=255)
    assert running.end() == 3


def test_consoles_for_several_and_vms_that_reach_each_other(running: Running) -> None:
    running.pvc("wait", "--timeout", "300s")
    terminal, watcher = (Terminal(running.tb.argv(["pvc", "console", "vm0"])) for _ in range(2))
    watcher.expect("GUEST-READY")
    terminal.expect("leaves it")
    terminal.type("\n")
    terminal.expect("# ")
    terminal.type("echo $((6*7))-$(hostname)\n")
    for each in (terminal, watcher):
        each.expect("42-vm0")
    watcher.type("\x1d")
    assert watcher.wait() == 0
    terminal.type("ping -c 3 10.200.0.3\n")
    terminal.expect(r"[1-3] packets received", 300)
    terminal.type("\x1d")
    terminal.expect("left the console")
    assert terminal.wait() == 0


def test_waiting_for_what_never_answers(running: Running) -> None:
    running.pvc("wait", "vm2", "--timeout", "300s")
    supervisor = running.tb.root("pgrep -f 'pvc supervise' | head -1", "n2").strip()
    running.tb.root(["kill", "-9", supervisor], "n2")
    wait_until(lambda: "failed" in running.pvc("status", "vm2"), 120, "nobody noticed")
    assert "vm2: is out of reach" in running.pvc("wait", "--timeout", "5s", code=7)
    assert "vm2: has failed" in running.pvc("ssh", "vm2", code=7)
    # The rest goes on, and so does the script
    assert "reachable" in running.pvc("status", "vm0") or "booting" in running.pvc("status", "vm0")
    assert running.end() == 3


def test_stop_ends_the_job(running: Running) -> None:
    running.pvc("stop", "-j", running.job_id, "--grace", "0s")
    out, err = running.process.communicate(timeout=300)
    assert running.process.returncode == 143, out + err
    assert "the cluster was stopped" in err
    running.tb.wait_no_jobs()
    assert "no cluster of yours runs" in running.pvc("status", code=4)


def test_several_clusters_need_a_choice(running: Running, small: str) -> None:
    tb = running.tb
    other = tb.run(["pvc", "alloc", "-J", "other", "-Q", small, "pvc", "status", "-J", "other"], timeout=LONG)
    assert "vm0" in other.out
    write_script(tb, "pvc status -j $1; env -u SLURM_JOB_ID -u SLURM_JOBID pvc status; exit 0", "two.sh")
    done = tb.run(["pvc", "alloc", "-Q", "-E", "./two.sh", small, running.job_id], timeout=LONG, check=False)
    assert "vm2" in done.out
    assert "several clusters could be meant" in done.err
    assert done.code == 0


def test_doctor_finds_nothing_missing(tb: Testbed, small: str) -> None:
    del small  # imported: there is an image
    done = tb.run(["pvc", "doctor", "--nodelist", "n[1-3]"], check=False, timeout=LONG)
    assert done.code == 0, done.out
    assert not re.search(r"^fail", done.out, re.MULTILINE)
    assert len(re.findall(r"^ok +n\d pvc-node", done.out, re.MULTILINE)) == 3
    findings = json.loads(tb.run(["pvc", "doctor", "--node", "--json"], node="n1", user="root").out)
    assert {each["check"]: each["verdict"] for each in findings}["etcd"] == "ok"


def test_commands_without_a_terminal_do_not_wait(tb: Testbed, small: str) -> None:
    """Standard input that is closed is no reason to hang."""
    process = tb.start(["pvc", "alloc", "-Q", small, "cat"], stdin=subprocess.DEVNULL)
    assert process.wait(LONG) == 0
    process.communicate()
