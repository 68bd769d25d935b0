# SPDX-License-Identifier: Apache-2.0
"""What a user's job leaves, holds or names does not take a node out of service."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

import pytest

from tests.attacks.victim import ATTACKER, BARE, OWNER, allocs, write_template
from tests.slurm.testbed import Snapshot, Testbed, find_pids
from tests.waits import wait_until

# All of these run as steps of the job, whose directory on the node they find by the job's number.
HEAD = """
import ctypes, os, sys, threading
os.chdir(f"/var/tmp/pvc/{os.environ['SLURM_JOB_ID']}")
"""
DEEP = """
for _ in range(1500):
    os.mkdir("d"); os.chdir("d")
"""
MANY = """
for number in range(20000):
    os.close(os.open(f"f{number}", os.O_CREAT | os.O_WRONLY))
"""
_NASTY = r"""
name = b"\n2026-01-01 pvc-node: all is well\x1b]0;owned\x07\x1b[2J\xc2\x9b31m\xff"
os.mkdir(name); os.chdir(name)
for _ in range(1500):
    os.mkdir(name[:40]); os.chdir(name[:40])
"""
_ODD = """
os.mkfifo("fifo"); os.symlink("/etc", "link")
with open("sparse", "wb") as stream: stream.truncate(1 << 40)
os.makedirs("shut/in"); os.chmod("shut/in", 0); os.chmod("shut", 0); os.chmod(".", 0)
"""


@pytest.fixture
def job_dir(tb: Testbed) -> Iterator[None]:
    """The attacker's definition of a VM, and no node out of service at the end."""
    write_template(tb, ATTACKER)
    yield
    assert tb.run(["sinfo", "-h", "-R"]).out == ""


def alloc(tb: Testbed, script: str, *options: str) -> None:
    """A whole cluster of the attacker's on n1 whose script does something in the job's directory, and ends."""
    path = tb.home(ATTACKER) / "attack.py"
    path.write_text(script)
    command = "srun --overlap -N1 -n1 /usr/bin/python3 -I attack.py"
    line = shlex.join(["pvc", "alloc", "-c", "1", "-w", "n1", *options, "-E", "./attack.sh", BARE])
    (tb.home(ATTACKER) / "attack.sh").write_text(f"#!/bin/sh\nexec {command}\n")
    tb.run("chmod 755 ~mallory/attack.sh; chown mallory: ~mallory/attack.*", user="root")
    done = tb.run(line, user=ATTACKER, check=False, timeout=180)
    assert done.code == 0, (done.out, done.err)


def assert_in_service(tb: Testbed, before: dict[str, Snapshot]) -> None:
    """The node takes the next job of the same user and of another, and nothing is left after a while."""
    assert allocs(tb, ATTACKER).code == 0
    assert allocs(tb).code == 0
    tb.wait_no_jobs()
    assert tb.run(["sinfo", "-h", "-R"]).out == ""
    tb.assert_clean(before)
    tb.wait_idle()


@pytest.mark.parametrize("what", [DEEP, MANY, _NASTY, _ODD], ids=["deep", "many", "nasty", "odd"])
def test_what_a_job_leaves(tb: Testbed, before: dict[str, Snapshot], job_dir: None, what: str) -> None:
    del job_dir
    alloc(tb, HEAD + what)
    assert_in_service(tb, before)
    for log in (tb.log("n1", "slurmd"), tb.log("n1", "pvc-node")):
        assert "\x1b" not in log
        assert "\n2026-01-01 pvc-node" not in log


_SECOND = """
import os, subprocess, threading, time
def make(number):
    tops = []
    while True:
        if not tops:
            # That of any job of the user's but this one
            for job in subprocess.check_output(["squeue", "-h", "--me", "-o", "%A"], text=True).split():
                try:
                    tops.append(os.open(f"/var/tmp/pvc/{job}", os.O_RDONLY))
                    open("racing", "w").close()
                except OSError:
                    pass
        for fd in tops:
            number += 4
            if number > 8000:
                time.sleep(0.02)  # as fast as it can at first; what is made is removed again on two cores
            try:
                os.mkdir(f"d{number}", dir_fd=fd)
                if len(tops) < 200:
                    tops.append(os.open(f"d{number}", os.O_RDONLY, dir_fd=fd))
            except OSError:
                pass
        time.sleep(0)
for each in range(4):
    threading.Thread(target=make, args=(each,), daemon=True).start()
threading.Event().wait()
"""


def test_a_second_job_goes_on_making_files(tb: Testbed, before: dict[str, Snapshot], job_dir: None) -> None:
    """It is another job on the same node, so it lives on when the first one ends."""
    del job_dir
    (tb.home(ATTACKER) / "second.py").write_text(_SECOND)
    (tb.home(ATTACKER) / "racing").unlink(missing_ok=True)
    script = "#!/bin/sh\nexec /usr/bin/python3 -I second.py\n"
    line = f"printf '{script}' > second.sh; sbatch -Q -w n1 -c1 --mem=64 -o /dev/null second.sh"
    tb.run(line, user=ATTACKER)
    try:
        wait_until(lambda: find_pids(tb, "n1", "second.py"), 120, "the second job does not run")
        alloc(tb, "import os, time\nwhile not os.path.exists('racing'): time.sleep(0.05)\ntime.sleep(0.2)\n")
        assert find_pids(tb, "n1", "second.py")
        assert allocs(tb, OWNER).code == 0
        assert tb.run(["sinfo", "-h", "-R"]).out == ""
    finally:
        tb.run(["scancel", "--user", ATTACKER], user=ATTACKER, check=False)
    assert_in_service(tb, before)
