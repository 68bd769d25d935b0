# SPDX-License-Identifier: Apache-2.0
"""The agent in guests that really run: commands, files, and what befalls guests and their supervisor."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from reached import Reached, reached

from pvc.ops.copy import copy
from tests.waits import wait_until

pytestmark = pytest.mark.vm


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reached]:
    with reached(tmp_path_factory.mktemp("reached") / "cluster", 2) as found:
        yield found


def test_commands(cluster: Reached) -> None:
    ran = cluster.run("sh", "-c", "hostname; echo err >&2; exit 3")
    assert ran.codes == [3, 3]
    assert [ran.out(rank) for rank in (0, 1)] == ["vm0\n", "vm1\n"]
    assert ran.err(1) == "err\n"
    ran = cluster.run("tty", ranks=[0], pty=True)
    assert (ran.codes, ran.out()) == ([0], "/dev/pts/0\r\n")
    ran = cluster.run("head", "-c", "20000000", "/dev/zero", ranks=[1])
    assert (ran.codes, len(ran.out(1))) == ([0], 20_000_000)


def test_files_and_a_full_disk(cluster: Reached, tmp_path: Path) -> None:
    (tmp_path / "tree/deep").mkdir(parents=True)
    (tmp_path / "tree/deep/data").write_bytes(os.urandom(3_000_000))
    (tmp_path / "tree/link").symlink_to("deep/data")
    copy(cluster.control, [os.fspath(tmp_path / "tree"), "vm[0-1]:/tmp"], "root").raise_failed()
    copy(cluster.control, ["vm[0-1]:/tmp/tree", os.fspath(tmp_path)], "root").raise_failed()
    for rank in (0, 1):
        assert (tmp_path / f"vm{rank}/tree/deep/data").read_bytes() == (tmp_path / "tree/deep/data").read_bytes()
    assert cluster.run("sh", "-c", "mkdir /tmp/small; mount -t tmpfs -o size=1m none /tmp/small").codes == [0, 0]
    for words in (["tree", "vm0:/tmp/small"], ["tree/deep/data", "vm0:/tmp/small/data"]):
        (result,) = copy(cluster.control, [os.fspath(tmp_path / words[0]), words[1]], "root").vms
        assert result.error is not None
        assert "No space left on device" in result.error
        assert result.hint is not None
        assert cluster.run("ls", "-A", "/tmp/small", ranks=[0]).out() == ""


def test_a_paused_vm(cluster: Reached) -> None:
    assert cluster.cluster.ask(op="order", order="pause", vms=[1])["ok"]
    ran = cluster.run("echo", "here")
    assert ran.codes == [0, 7]
    assert (ran.outcomes[1].error, ran.outcomes[1].hint) == ("vm1 is paused", "let it go on: pvc resume vm1")
    assert cluster.cluster.ask(op="order", order="resume", vms=[1])["ok"]
    assert cluster.run("echo", "here").codes == [0, 0]


def test_a_guest_that_boots_again(cluster: Reached) -> None:
    """Who waits for it is told, and the agent is there again without anybody's doing."""
    found: list[list[str | None]] = []

    def wait() -> None:
        ran = cluster.run("sleep", "1000", ranks=[1], timeout_s=200)
        found.append([outcome.error for outcome in ran.outcomes])

    waiter = threading.Thread(target=wait)
    waiter.start()
    wait_until(lambda: "sleep 1000" in cluster.run("ps", ranks=[1]).out(1), 120)
    before = cluster.wait_agents()[1].agent.since
    assert cluster.cluster.ask(op="order", order="reset", vms=[1])["ok"]
    waiter.join(200)
    assert found == [["vm1 boots again"]]
    wait_until(lambda: cluster.wait_agents()[1].agent.since != before, 200)
    assert cluster.run("hostname").codes == [0, 0]


def test_an_agent_that_is_killed(cluster: Reached) -> None:
    ran = cluster.run("sh", "-c", "kill -9 $PPID; sleep 1000", ranks=[0])
    assert ran.outcomes[0].error == "the agent of vm0 has ended"
    refused = cluster.run("true", ranks=[0])
    assert refused.outcomes[0].error == "no agent in vm0: the agent of vm0 has ended"
    assert refused.outcomes[0].hint is not None
    assert cluster.run("hostname", ranks=[1]).codes == [0]


def test_a_killed_supervisor(tmp_path: Path) -> None:
    """The last: no command hangs, and it is said what has ended."""
    with reached(tmp_path / "cluster", 1) as cluster:
        found: list[str | None] = []

        def wait() -> None:
            found.append(cluster.run("sleep", "1000", timeout_s=200).outcomes[0].error)

        waiter = threading.Thread(target=wait)
        waiter.start()
        wait_until(lambda: "sleep 1000" in cluster.run("ps").out(), 120)
        os.kill(cluster.cluster.process.pid, signal.SIGKILL)
        waiter.join(60)
        assert found
        assert found[0] is not None
        assert "the supervisor on n1" in found[0]
        refused = cluster.run("true")
        assert refused.codes == [6]
        assert refused.outcomes[0].error is not None
        assert refused.outcomes[0].error.startswith("the supervisor on n1 does not answer")
