"""What a full run directory does; needs root for its own small file systems."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from guests import build_guest
from harness import (
    HYPERVISORS,
    Console,
    FakeNode,
    Launched,
    guest_template,
    make_grant,
    make_keys,
    make_spec,
    wait_until,
)

from pvc.model.event import EventKind
from pvc.model.node import VmGrant
from pvc.model.vm import Disk, Phase
from tests.quotas import quota_dir, set_quota

pytestmark = pytest.mark.vm


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    path = tmp_path / "small"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k,mode=700", "tmpfs", path], check=True)
    yield path
    subprocess.run(["umount", path], check=True)


def launch(tmp_path: Path, run_dir: Path, hypervisor: str = "qemu") -> tuple[FakeNode, Launched]:
    base = tmp_path / "base.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", base, "64M"], check=True)
    template = guest_template(build_guest(), Disk(os.fspath(base), "qcow2", 64 << 20), hypervisor=hypervisor)
    node = FakeNode(tmp_path / "sock", make_grant(run_dir, [VmGrant(0, (), {})]))
    return node, Launched(make_spec([template], make_keys(tmp_path / "keys")), tmp_path / "sock", home=tmp_path)


def test_no_room_for_the_vms_files(tmp_path: Path, small: Path) -> None:
    (small / "ballast").write_bytes(b"x" * (248 << 10))
    node, cluster = launch(tmp_path, small)
    try:
        failed = cluster.wait_phase(0, Phase.FAILED)
        assert failed.detail.startswith(f"cannot write the VM's files in {small}/vm0: No space left on device")
        assert "free space below" in (failed.hint or "")
        assert cluster.process.stdin is not None
        cluster.process.stdin.close()
        assert cluster.wait_end() == 0
    finally:
        cluster.close()
        node.close()
    assert os.listdir(small) == ["ballast"]


def test_a_quota_pauses_the_guest(tmp_path: Path) -> None:
    with quota_dir(tmp_path, "2M") as mine:
        (mine / "run").mkdir(mode=0o700)
        node, cluster = launch(tmp_path, mine / "run")
        try:
            cluster.wait_phase(0, Phase.BOOTING)
            with cluster.connect() as connection:
                console = Console(connection, 0)
                console.wait_prompt()
                console.send(b"dd if=/dev/urandom of=/dev/vda bs=64k count=128; sync; echo do''ne\n")
                wait_until(lambda: any("cannot be written" in event.detail for event in cluster.events), 60)
                detail = cluster.ask(op="status")["vms"][0]["detail"]
                assert detail.startswith("paused: its disk in")
                assert "Disk quota exceeded" in detail
                set_quota(mine, "64M")
                console.wait(b"done", 60)
                assert b"error" not in console.data
        finally:
            cluster.close()
            node.close()


@pytest.mark.parametrize("hypervisor", HYPERVISORS)
def test_a_disk_that_fills_up_pauses_the_guest_until_there_is_room(
    tmp_path: Path, small: Path, hypervisor: str
) -> None:
    subprocess.run(["mount", "-o", "remount,size=4m", small], check=True)
    node, cluster = launch(tmp_path, small, hypervisor)
    try:
        cluster.wait_phase(0, Phase.BOOTING)
        with cluster.connect() as connection:
            console = Console(connection, 0)
            console.wait_prompt()
            console.send(b"dd if=/dev/urandom of=/dev/vda bs=64k count=128; sync; echo do''ne\n")
            wait_until(lambda: any("cannot be written" in event.detail for event in cluster.events), 30)
            detail = cluster.ask(op="status")["vms"][0]["detail"]
            assert detail.startswith("paused: its disk in")
            assert "No space left on device" in detail
            subprocess.run(["mount", "-o", "remount,size=40m", small], check=True)
            console.wait(b"done", 40)
            wait_until(lambda: cluster.ask(op="status")["vms"][0]["detail"].startswith("runs"), 20)
        # The event and the answer take different ways here.
        wait_until(lambda: [e for e in cluster.events if e.kind is EventKind.VM][-1].phase is Phase.BOOTING, 20)
    finally:
        cluster.close()
        node.close()
