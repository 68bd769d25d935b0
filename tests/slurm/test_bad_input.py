# SPDX-License-Identifier: Apache-2.0
"""What users and administrators get wrong: a clear error, the right exit code, nothing half-made, no drained node."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.testbed import Snapshot, Testbed
from tests.waits import wait_until


@pytest.fixture
def quiet(tb: Testbed, before: dict[str, Snapshot]) -> Iterator[None]:
    """Afterwards there is no trace of the attempt, and the nodes are in service."""
    yield
    for name in ("templates.yaml", "repos.yaml"):
        (tb.home() / ".pvc" / name).unlink(missing_ok=True)
    tb.wait_no_jobs()
    tb.assert_clean(before)
    tb.wait_idle()
    jobs = tb.home() / ".pvc" / "jobs"
    assert not jobs.exists() or list(jobs.iterdir()) == []


def alloc(tb: Testbed, *words: str, code: int, env: dict[str, str] | None = None) -> str:
    """Standard error of a ``pvc alloc`` that must end with ``code`` and never start its command."""
    done = tb.run(["pvc", "alloc", *words, "echo", "STARTED"], check=False, env=env, timeout=300)
    assert done.code == code, done.err
    assert "STARTED" not in done.out
    return done.err


def write_templates(tb: Testbed, text: str) -> None:
    directory = tb.home() / ".pvc"
    directory.mkdir(mode=0o700, exist_ok=True)
    shutil.chown(directory, 30001, 30001)
    (directory / "templates.yaml").write_text(text)


@pytest.mark.usefixtures("quiet")
def test_before_there_is_a_job(tb: Testbed, small: str) -> None:
    assert f"did you mean '{small}'" in alloc(tb, "smal:2", code=2)
    assert "1 to 65536 VMs" in alloc(tb, f"{small}:0", code=2)
    assert "1 to 65536 VMs" in alloc(tb, f"{small}:1000000", code=2)
    assert "no image 'nope'" in alloc(tb, "--image", "nope", small, code=2)
    assert "--user-data: cannot read" in alloc(tb, "--user-data", "nope", small, code=2)
    (tb.home() / "ud").write_text("---\n#cloud-config\n")
    passed_over = alloc(tb, "--user-data=~/ud", small, code=2)
    assert "/ud:2: '#cloud-config' has to be the first line, and '---' is before it (line 1)" in passed_over
    assert tb.jobs() == []


@pytest.mark.usefixtures("quiet")
def test_more_cores_than_a_node_has(tb: Testbed, small: str) -> None:
    done = tb.run(["pvc", "alloc", "-c", "17", small, "echo", "STARTED"], check=False)
    assert done.code != 0
    assert "salloc: error" in done.err
    assert "STARTED" not in done.out


@pytest.mark.usefixtures("quiet")
def test_configuration_that_is_wrong(tb: Testbed, small: str) -> None:
    write_templates(tb, "mine:\n  image: x\n  resource-set: nope\n  colour: red\n")
    said = alloc(tb, small, code=3)
    assert ".pvc/templates.yaml:3: mine.resource-set" in said
    assert ".pvc/templates.yaml:4: mine.colour" in said
    write_templates(tb, "mine: [\n")
    assert ".pvc/templates.yaml:" in alloc(tb, small, code=3)
    # The plug-in asks pvc before there is a job, so Slurm's own commands refuse, too
    done = tb.run(["sbatch", f"--pvc={small}", "--wrap=true"], check=False)
    assert done.code != 0
    assert ".pvc/templates.yaml:" in done.err
    assert tb.jobs() == []


@pytest.mark.usefixtures("quiet")
def test_a_network_that_does_not_exist(tb: Testbed, small: str) -> None:
    site = tb.home() / "site"
    shutil.copytree(tb.place.state_dir / "etc" / "pvc", site, ignore=shutil.ignore_patterns("etcd-password"))
    (site / "resources.yaml").write_text("nat: {networks: [nat, nope], default: yes}\n")
    assert "nope" in alloc(tb, small, code=3, env={"PVC_CONF_DIR": "/home/student/site"})
    # A set that only the user's copy of the site knows: root looks it up in its own, and refuses
    (site / "resources.yaml").write_text("other: {networks: [nat], default: yes}\n")
    said = alloc(tb, "--image", small, small, code=2, env={"PVC_CONF_DIR": "/home/student/site"})
    assert "other" in said
    shutil.rmtree(site)


@pytest.mark.usefixtures("quiet")
def test_a_damaged_image(tb: Testbed, small: str, tmp_path: Path) -> None:
    repository = tb.home() / ".pvc" / "images"
    tb.run("qemu-img create -q -f qcow2 disk.qcow2 8M && pvc image import disk.qcow2 broken && rm disk.qcow2")
    blob = max((path for path in repository.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    blob.chmod(0o644)
    blob.write_bytes(b"x" * 10)
    assert "is damaged" in alloc(tb, "broken", code=7)
    shutil.rmtree(repository)


@pytest.mark.usefixtures("quiet")
def test_qemu_is_missing(tb: Testbed, small: str) -> None:
    write_templates(tb, f"mine:\n  image: {small}\n  qemu-bin: qemu-system-nope\n")
    assert "qemu-system-nope" in alloc(tb, "-N2", "mine:2", code=7)


@pytest.mark.usefixtures("quiet")
def test_too_little_memory(tb: Testbed, small: str) -> None:
    assert "MiB" in alloc(tb, "-m", "1M", small, code=2)


@pytest.mark.usefixtures("quiet")
def test_etcd_is_down(tb: Testbed, small: str) -> None:
    # Stopped, not killed: init would start it again
    pid = tb.root("pgrep -x etcd", "login").strip()
    tb.root(["kill", "-STOP", pid], "login")
    try:
        said = alloc(tb, "-N2", f"{small}:2", code=5)
    finally:
        tb.root(["kill", "-CONT", pid], "login")
    assert "etcd" in said
    assert "hint:" in said


@contextlib.contextmanager
def full_run_directory(tb: Testbed, options: str) -> Iterator[None]:
    """On n1, job directories are made on a file system of this size."""
    # Without libmount's own record of mounts, which would stay in /run.
    tb.root(f"mkdir -p /var/tmp/pvc && mount -n -i -t tmpfs -o mode=755,{options} full /var/tmp/pvc", "n1")
    try:
        yield
    finally:
        wait_until(lambda: not tb.jobs(), 120, "the job is still there")
        tb.root("umount -n -i /var/tmp/pvc", "n1")
        tb.root("scontrol update nodename=n1 state=resume || true", "login")


@pytest.mark.usefixtures("quiet")
def test_a_full_disk_in_the_run_directory(tb: Testbed, small: str) -> None:
    with full_run_directory(tb, "size=64k"):
        said = alloc(tb, "-w", "n1", small, code=7)
    assert "No space left" in said


@pytest.mark.usefixtures("quiet")
def test_a_run_directory_without_room_for_a_directory(tb: Testbed, small: str) -> None:
    """Any user can fill it: a job that needs room is refused with the reason, and the node stays in service."""
    with full_run_directory(tb, "size=4k,nr_inodes=1"):
        said = alloc(tb, "-w", "n1", small, code=4)
        tb.wait_idle()
    assert "pvc: n1: cannot do MakeRunDir: No space left" in said
    assert "hint: this node has no room" in said
    tb.run(["pvc", "alloc", "-w", "n1", small, "true"], timeout=300)
