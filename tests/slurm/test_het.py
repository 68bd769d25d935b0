# SPDX-License-Identifier: Apache-2.0
"""Clusters of VMs of different sizes: a heterogeneous job, or an ordinary one on one node."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
from collections.abc import Iterator

import pytest

from tests.slurm.clusters import Cluster
from tests.slurm.guest import Console
from tests.slurm.test_drives import ask_witness
from tests.slurm.test_faults import assert_over, kill, leftovers
from tests.slurm.testbed import Snapshot, Testbed
from tests.waits import wait_until

TEMPLATES = """
one: {image: small, resource-set: nat, memory: 160M}
two: {image: small, resource-set: nat, cores: 2, memory: 256M}
last: {image: small, resource-set: lan, memory: 160M, slurm-args: [--nodelist=n3]}
"""


@pytest.fixture(scope="module", autouse=True)
def templates(testbed: Testbed, small: str) -> Iterator[None]:
    """Two templates of one image: one core and 160 MiB, two cores and 256 MiB."""
    path = testbed.home() / ".pvc" / "templates.yaml"
    testbed.run(["mkdir", "-p", ".pvc"])
    path.write_text(TEMPLATES.replace("small", small))
    yield
    path.unlink()


def start(tb: Testbed, definition: str, *options: str) -> Cluster:
    made = Cluster(tb, definition, *options, size=())
    try:
        return made.wait_running()
    except BaseException:
        made.close()
        raise


@pytest.fixture
def cluster(tb: Testbed, before: dict[str, Snapshot]) -> Iterator[Cluster]:
    """vm0 of one core on a node of its own, vm1 and vm2 of two cores on the two others."""
    del before  # taken before the cluster is
    made = start(tb, "one,two:2", "-N", "3")
    yield made
    made.close()


def check_size(console: Console, cores: int, memory_mib: int) -> None:
    """The guest has these cores, and the memory less what its kernel keeps."""
    code, out = console.run("nproc; grep MemTotal /proc/meminfo")
    assert code == 0, out
    found = re.search(r"^(\d+)\s+MemTotal:\s+(\d+) kB", out, re.MULTILINE)
    assert found is not None, out
    assert int(found[1]) == cores
    assert memory_mib * 0.6 < int(found[2]) / 1024 <= memory_mib


def read_status(tb: Testbed, *words: str) -> list[dict[str, object]]:
    """The VMs as pvc status lists them."""
    found: list[dict[str, object]] = json.loads(tb.run(["pvc", "status", *words, "--json"]).out)["vms"]
    return found


def test_one_cluster_across_components(tb: Testbed, before: dict[str, Snapshot], cluster: Cluster) -> None:
    cluster.wait_reachable()
    leader, component = str(cluster.job_id), str(cluster.job_id + 1)
    rows = read_status(tb, "-j", component)
    assert [(row["name"], row["cpus"], row["memory_mib"]) for row in rows] == [
        ("vm0", 1, 160),
        ("vm1", 2, 256),
        ("vm2", 2, 256),
    ]
    assert len({row["node"] for row in rows}) == 3
    assert [row["name"] for row in read_status(tb, "-j", f"{leader}+1")] == ["vm0", "vm1", "vm2"]
    unknown = tb.run(["pvc", "status", "-j", f"{leader}+7"], check=False)
    assert (unknown.code, f"Slurm has no job {leader}+7" in unknown.err) == (4, True), unknown.err
    listed = json.loads(tb.run(["pvc", "ps", "--json"]).out)
    assert [(row["job_id"], row["vms"]) for row in listed] == [(int(leader), 3)]
    with Console(tb, int(leader), "vm0") as small, Console(tb, int(component), "vm2") as large:
        check_size(small, 1, 160)
        check_size(large, 2, 256)
        for console, other in ((small, 1), (small, 2), (large, 0)):
            # Its statically linked ping looks no names up.
            assert f"10.200.0.{other + 1}" in console.run(f"nslookup vm{other} 10.200.255.254 | sed '1,2d'")[1]
            code, out = console.run(f"ping -c 1 -w 10 10.200.0.{other + 1}")
            assert code == 0, out
    shown = json.loads(tb.run(["pvc", "network", "show", "nat", "--json", "-j", component]).out)
    assert len(shown["clusters"]) == 1
    assert tb.run(["pvc", "doctor", "-j", leader]).code == 0
    # The end of one component is the end of all
    tb.run(["scancel", component])
    said = cluster.end()
    assert f"component {component} of job {leader} has ended" in said
    assert cluster.process.returncode == 4
    assert_over(tb, before)


@pytest.mark.parametrize("how", ["stop", "scancel", "both", "crash"])
def test_nothing_is_left(tb: Testbed, before: dict[str, Snapshot], cluster: Cluster, how: str) -> None:
    match how:
        case "stop":
            tb.run(["pvc", "stop", "-j", str(cluster.job_id + 1)])
        case "scancel":
            tb.run(["scancel", str(cluster.job_id)])
        case "both":
            kill(tb, "login", "pvc launch")
        case _:
            tb.crash("n3")
    cluster.end(timeout=300)
    if how != "crash":
        assert_over(tb, before, timeout=300)
        return
    # A booted node has what every boot makes; what counts is that nothing of the components is there.
    tb.boot("n3")
    assert_over(tb, {node: snap for node, snap in before.items() if node != "n3"}, timeout=300)
    ids = range(cluster.job_id, cluster.job_id + 3)
    with contextlib.suppress(AssertionError):  # which does not say what
        wait_until(lambda: not any(leftovers(tb, "n3", each) for each in ids), 120, "the crashed node kept something")
    assert [leftovers(tb, "n3", each) for each in ids] == [[], [], []]


def test_all_sizes_on_one_node(tb: Testbed, before: dict[str, Snapshot]) -> None:
    made = start(tb, "two,one:2", "-N", "1")
    try:
        made.wait_reachable()
        assert len({row["node"] for row in read_status(tb)}) == 1
        with Console(tb, made.job_id, "vm0") as large, Console(tb, made.job_id, "vm2") as small:
            check_size(large, 2, 256)
            check_size(small, 1, 160)
    finally:
        made.close()
    assert_over(tb, before)


def test_batch(tb: Testbed, before: dict[str, Snapshot]) -> None:
    script = tb.home() / "het.sh"
    script.write_text("#!/bin/sh\npvc status --json\n")
    script.chmod(0o755)
    tb.run(["pvc", "batch", "--output=het.out", "-E", "./het.sh", "one,two,last"])
    tb.wait_no_jobs(90)
    text = (tb.home() / "het.out").read_text()
    rows = json.loads(text[text.index("{") : text.rindex("}") + 1])["vms"]
    assert [(row["name"], row["cpus"]) for row in rows] == [("vm0", 1), ("vm1", 2), ("vm2", 1)]
    assert rows[2]["node"] == "n3"  # as its template alone wants
    assert_over(tb, before)


def test_by_hand(tb: Testbed, before: dict[str, Snapshot]) -> None:
    script = tb.home() / "start.sh"
    script.write_text("#!/bin/sh\npvc start && pvc status --json > hand.json\n")
    script.chmod(0o755)
    tb.run(["salloc", "--pvc=one,two", "-n1", "-c1", ":", "-n1", "-c3", "./start.sh"], timeout=300)
    rows = json.loads((tb.home() / "hand.json").read_text())["vms"]
    assert [(row["name"], row["cpus"]) for row in rows] == [("vm0", 1), ("vm1", 3)]
    assert_over(tb, before)


def test_a_task_of_an_array(tb: Testbed, before: dict[str, Snapshot]) -> None:
    """Slurm's own number of it is another one than the number that people have."""
    script = tb.home() / "task.sh"
    name = '"${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"'
    script.write_text(f'#!/bin/sh\npvc start && pvc status -j {name} --json > "task$SLURM_JOB_ID.json"\n')
    script.chmod(0o755)
    tb.run(
        ["sbatch", "--wait", "--array=3,7%1", "--pvc=one", "-n1", "-c1", "--output=task.out", "task.sh"], timeout=300
    )
    found = {path.name: json.loads(path.read_text()) for path in tb.home().glob("task*.json")}
    assert len(found) == 2, found
    assert all(name == f"task{each['cluster']['job_id']}.json" for name, each in found.items()), found
    assert_over(tb, before)


def test_lease_of_a_component_that_ended_by_itself(tb: Testbed) -> None:
    """A persistent drive's lease names the leader: Slurm is asked for the component that its node is of."""
    job = tb.start(["salloc", "-Q", "-n1", "-w", "n1", ":", "-n1", "-w", "n2", "cat"], stdin=subprocess.PIPE)
    try:
        # Of a job that is not all running, Slurm cancels no part by itself.
        running = ["squeue", "-h", "-t", "RUNNING", "-o", "%A"]
        wait_until(lambda: len(tb.run(running).out.split()) == 2, 120, "the job has not started")
        leader = min(int(number) for number in tb.run(["squeue", "-h", "-o", "%A"]).out.split())
        wait_until(lambda: ask_witness(tb, leader, "n2") == "alive", 120, "a component that runs is not seen")
        tb.run(["scancel", f"{leader}+1"])
        wait_until(lambda: ask_witness(tb, leader, "n2") == "dead", 120, "a component that ended is not seen")
        assert ask_witness(tb, leader, "n1") == "alive"
    finally:
        job.communicate(timeout=300)  # which does not give back the rest
    tb.run(["scancel", str(leader)])
    wait_until(lambda: ask_witness(tb, leader, "n1") == "dead", 120, "a leader that ended is not seen")
