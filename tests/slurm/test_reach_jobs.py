# SPDX-License-Identifier: Apache-2.0
"""Jobs of programs, and what jobs are told before their end."""

from __future__ import annotations

import re

import pytest

from tests.slurm.images import import_agent
from tests.slurm.testbed import Testbed
from tests.waits import wait_until

LONG = 600.0


@pytest.fixture(scope="module")
def image(testbed: Testbed, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The small guest, with the agent in it."""
    return import_agent(testbed, tmp_path_factory.mktemp("agent"))


API = """
import sys
from pvc import Cluster
from pvc.errors import GuestError
with Cluster.allocate(sys.argv[1] + ":2", nodes="2") as cluster:
    cluster.wait(until="agent", timeout_s=250)
    print([each.text for each in cluster.exec(["hostname"])])
    cluster.copy(sys.argv[0], "vm1:/tmp/script")
    text = open(sys.argv[0]).read().removesuffix("\\n")
    print(cluster.exec(["cat", "/tmp/script"], "vm1")[0].text == text)
    with cluster.forward("0:vm0:22") as (ssh,):
        import contextlib, socket, time
        heard = b""
        while not heard:
            with contextlib.suppress(ConnectionError), socket.create_connection(("127.0.0.1", ssh.local)) as connection:
                heard = connection.recv(100)  # it is reset as long as nothing listens there
            time.sleep(0.2)
        print(heard.decode().strip())
    try:
        cluster.exec(["sh", "-c", "echo sorry >&2; exit 3"], "vm0")
    except GuestError as err:
        print(err)
    if sys.argv[2] == "raise":
        raise RuntimeError("the user's own")
    cluster.stop(grace_s=0)
    print("stopped")
"""


@pytest.mark.parametrize("how", ["stop", "raise"])
def test_a_program_of_a_user(tb: Testbed, image: str, how: str) -> None:
    (tb.home() / "api.py").write_text(API)
    done = tb.run([tb.python, "api.py", image, how], check=False, timeout=LONG)
    lines = done.out.splitlines()
    assert lines[:4] == ["['vm0', 'vm1']", "True", "SSH-2.0-busybox", "sh ended with 3 in vm0: sorry"], done.err
    if how == "stop":
        assert (done.code, lines[4:]) == (0, ["stopped"]), done.err
    else:
        assert done.code == 1
        assert "RuntimeError: the user's own" in done.err
    tb.wait_no_jobs()
    assert "no cluster of yours runs" in tb.run(["pvc", "ps"]).err


def test_a_program_that_is_killed_leaves_no_job(tb: Testbed, image: str) -> None:
    code = "import sys, time\nfrom pvc import Cluster\nCluster.allocate(sys.argv[1])\n"
    code += "print('runs', flush=True)\ntime.sleep(900)"
    program = tb.start([tb.python, "-c", code, image])
    assert program.stdout.readline() == "runs\n"
    pids = tb.root(["pgrep", "-f", "[t]ime.sleep.900"], "login").split()
    tb.root(["kill", "-9", *pids], "login")
    program.communicate(timeout=300)
    tb.wait_no_jobs()


def test_the_end_of_the_time_is_announced(tb: Testbed, image: str) -> None:
    script = tb.home() / "warned.sh"
    script.write_text(
        "#!/bin/bash\npvc wait --for agent --timeout 300s || exit 2\n"
        "until pvc logs vm0 | grep -q 'its time is over then'; do sleep 1; done; echo told\n"
    )
    script.chmod(0o755)
    # The guest hears what is said once it is up, whenever that is.
    warnings = (f"--warn={seconds}s" for seconds in range(340, 20, -20))
    done = tb.run(["pvc", "alloc", "-t", "6", *warnings, "-E", "./warned.sh", image], check=False, timeout=2 * LONG)
    warning = r"pvc: job \d+ and its VMs end in (\d min \d+ s|\d minutes): its time is over then"
    assert re.search(warning, done.err), done.err
    assert (done.code, done.out) == (0, "told\n"), done.err


def test_a_signal_for_the_script_reaches_it(tb: Testbed, image: str) -> None:
    script = tb.home() / "signalled.sh"
    script.write_text("#!/bin/bash\ntrap 'echo USR1; exit 4' USR1\ntouch trapped\nwhile :; do sleep 0.1; done\n")
    script.chmod(0o755)
    (tb.home() / "trapped").unlink(missing_ok=True)
    tb.run(["pvc", "batch", "-o", "signal.txt", "-J", "signalled", "-E", "./signalled.sh", image])
    wait_until((tb.home() / "trapped").exists, 120, "the script has not started")
    tb.run(["scancel", "--batch", "--signal=USR1", "--name=signalled"])
    tb.wait_no_jobs()
    assert (tb.home() / "signal.txt").read_text().splitlines()[-1] == "USR1"
