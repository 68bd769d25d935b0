# SPDX-License-Identifier: Apache-2.0
"""Homes that are not as everybody's: elsewhere, full, none at all, and such that nodes, or root, do not see."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.slurm.test_users import TEMPLATES, check_words
from tests.slurm.testbed import Testbed


@pytest.fixture
def templates(testbed: Testbed) -> Iterator[None]:
    """Templates."""
    testbed.run("mkdir -p .pvc; cat >.pvc/templates.yaml", stdin=TEMPLATES)
    yield
    testbed.run("rm .pvc/templates.yaml")


@pytest.fixture
def small_home(testbed: Testbed, templates: None) -> Iterator[str]:
    """A home of 24 KiB."""
    del templates
    place = "/home/student/small"
    testbed.root(f"mkdir {place}; mount -t tmpfs -o size=24k,mode=777 tmpfs {place}", "login")
    yield place
    testbed.root(f"umount {place}; rmdir {place}", "login")


def test_homes_that_are_not_as_everybodys(tb: Testbed, small_home: str) -> None:
    alloc = ["pvc", "alloc", "-Q", "-E", "true", "pxe"]
    # It is elsewhere, and something of root's is where an earlier job was.
    tb.run("mkdir scratch; mv .pvc scratch/pvc; ln -s scratch/pvc .pvc; mkdir -p .pvc/jobs/4000/x")
    try:
        tb.root("cd /home/student/scratch/pvc/jobs/4000; chown root x; touch x/y", "login")
        done = tb.run(["pvc", "alloc", "-Q", "-E", "sh", "pxe", "-c", "pvc ps --json; pvc status"])
        assert (done.code, '"state": "running"' in done.out) == (0, True), done
        for words in (["pvc", "ps"], alloc):
            done = tb.run(words)
            check_words(done.err)
            assert "where job 4000 had its cluster: Permission denied" in done.err or words is alloc, done
    finally:
        tb.root("rm -rf /home/student/scratch/pvc/jobs/4000", "login")
        tb.run("rm .pvc; mv scratch/pvc .pvc; rmdir scratch")
    for home, words, hint in (
        (small_home, "No space left on device", "free some space in your home"),
        ("/proc", "No such file or directory", "clusters are kept in $HOME, which is '/proc'"),
        ("/sys", "", "and compute nodes must see it"),
        ("relative", "the path is not absolute", "which is 'relative'"),
    ):
        done = tb.run(["env", f"HOME={home}", *alloc], check=False)
        assert (done.code, words in done.err, hint in done.err) == (6, True, True), done
        assert f"{home}/.pvc/jobs is no place for clusters" in done.err
        check_words(done.err)
    assert tb.jobs() == []


@pytest.fixture
def unseen_home(testbed: Testbed, templates: None) -> Iterator[None]:
    """The nodes have nothing at /home."""
    del templates
    for node in testbed.nodes():
        testbed.root("mount -t tmpfs -o mode=755 tmpfs /home", node)
    yield
    testbed.wait_no_jobs()
    for node in testbed.nodes():
        testbed.root("umount /home", node)


@pytest.mark.usefixtures("unseen_home")
def test_a_home_that_the_nodes_do_not_see(tb: Testbed, small: str) -> None:
    """VMs need nothing of it; images and clusters of a batch job do, and say so."""
    assert tb.run(["pvc", "alloc", "-Q", "-E", "true", "pxe"]).err == ""
    done = tb.run("cd /tmp; pvc batch -W -Q -o /tmp/said-by-job -E /bin/true -w n1 pxe", check=False)
    said = tb.run(["cat", "/tmp/said-by-job"], node="n1").out
    assert (done.code, "/.pvc/jobs is no place for clusters: Permission denied" in said) == (6, True), said
    assert "and compute nodes must see it, too" in said
    check_words(said)
    tb.run(["pvc", "image", "copy", small, "user:mine"])
    try:
        done = tb.run(["pvc", "alloc", "-Q", "-E", "true", "--image", "user:mine", "pxe"], check=False)
        assert (done.code, "images must be on a file system that every node mounts" in done.err) == (7, True), done
        check_words(done.err)
    finally:
        tb.run(["pvc", "image", "delete", "-y", "user:mine"])


@pytest.fixture
def closed_home(testbed: Testbed, templates: None) -> Iterator[None]:
    """A file system at the home that has no root, as one of NFS with root squash, and where what is open stays."""
    del templates
    places = ("login", *testbed.nodes())
    for node in places:
        testbed.run("cd /; bindfs --no-allow-other -o nonempty $HOME $HOME", node=node)
        assert testbed.run(["ls", "/home/student"], node=node, user="root", check=False).code != 0
    yield
    testbed.wait_no_jobs()
    for node in places:
        testbed.run("cd /; fusermount -u $HOME", node=node)


@pytest.mark.usefixtures("closed_home")
def test_a_home_that_root_may_not_see(tb: Testbed) -> None:
    assert tb.run(["pvc", "alloc", "-Q", "-E", "sh", "-N2", "pxe:2", "-c", "pvc status"]).out.count("vm") == 2
    # slurmd itself cannot make a file there.
    tb.run("cd /tmp; pvc batch -W -Q -o /tmp/said-by-job -E /bin/true pxe && ls -A ~/.pvc/jobs")
    assert tb.run("ls -A ~/.pvc/jobs").out == ""
    # Somebody reads what a launcher has said when it is removed.
    tb.run("mkdir -p .pvc/jobs/4000; echo x >.pvc/jobs/4000/launcher.log")
    done = tb.run("exec 3<.pvc/jobs/4000/launcher.log; pvc ps; exec 3<&-; pvc ps; ls -A .pvc/jobs")
    assert (done.out, done.err.count("where job 4000 had its cluster: a program has a file in it open")) == ("", 1), (
        done
    )
