# SPDX-License-Identifier: Apache-2.0
"""What a full run directory does; needs root for its own small file systems."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from guests import build_guest
from harness import HYPERVISORS, Console, Supervised, guest_template, supervised

from pvc.model.event import EventKind
from pvc.model.vm import Disk, Phase
from tests.quotas import quota_dir, set_quota
from tests.waits import wait_until

pytestmark = pytest.mark.vm


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    path = tmp_path / "small"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k,mode=700", "tmpfs", path], check=True)
    yield path
    subprocess.run(["umount", path], check=True)


def launch(tmp_path: Path, run_dir: Path, hypervisor: str = "qemu") -> AbstractContextManager[Supervised]:
    base = tmp_path / "base.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", base, "64M"], check=True)
    template = guest_template(build_guest(), Disk(os.fspath(base), "qcow2", 64 << 20), hypervisor=hypervisor)
    return supervised(tmp_path, template, run_dir=run_dir)


def test_no_room_for_the_vms_files(tmp_path: Path, small: Path) -> None:
    (small / "ballast").write_bytes(b"x" * (248 << 10))
    with launch(tmp_path, small) as cluster:
        failed = cluster.wait_phase(0, Phase.FAILED)
        assert failed.detail.startswith(f"cannot write the VM's files in {small}/vm0: No space left on device")
        assert "free space below" in (failed.hint or "")
        assert cluster.process.stdin is not None
        cluster.process.stdin.close()
        assert cluster.wait_end() == 0
    assert os.listdir(small) == ["ballast"]


def test_a_quota_pauses_the_guest(tmp_path: Path) -> None:
    with quota_dir(tmp_path, "2M") as mine:
        (mine / "run").mkdir(mode=0o700)
        with launch(tmp_path, mine / "run") as cluster:
            cluster.wait_phase(0, Phase.BOOTING)
            with cluster.connect() as connection:
                console = Console(connection, 0)
                console.wait_prompt()
                console.send(b"dd if=/dev/urandom of=/dev/vda bs=64k count=128; sync; echo do''ne\n")
                wait_until(lambda: any("cannot be written" in event.detail for event in cluster.events), 120)
                detail = cluster.ask(op="status")["vms"][0]["detail"]
                assert detail.startswith("paused: its disk in")
                assert "Disk quota exceeded" in detail
                set_quota(mine, "64M")
                console.wait(b"done")
                assert b"error" not in console.data


@pytest.mark.parametrize("hypervisor", HYPERVISORS)
def test_a_disk_that_fills_up_pauses_the_guest_until_there_is_room(
    tmp_path: Path, small: Path, hypervisor: str
) -> None:
    subprocess.run(["mount", "-o", "remount,size=4m", small], check=True)
    with launch(tmp_path, small, hypervisor) as cluster:
        cluster.wait_phase(0, Phase.BOOTING)
        with cluster.connect() as connection:
            console = Console(connection, 0)
            console.wait_prompt()
            console.send(b"dd if=/dev/urandom of=/dev/vda bs=64k count=128; sync; echo do''ne\n")
            wait_until(lambda: any("cannot be written" in event.detail for event in cluster.events), 120)
            detail = cluster.ask(op="status")["vms"][0]["detail"]
            assert detail.startswith("paused: its disk in")
            assert "No space left on device" in detail
            subprocess.run(["mount", "-o", "remount,size=40m", small], check=True)
            console.wait(b"done")
            wait_until(lambda: cluster.ask(op="status")["vms"][0]["detail"].startswith("runs"), 120)
        # The event and the answer take different ways here.
        wait_until(lambda: [e for e in cluster.events if e.kind is EventKind.VM][-1].phase is Phase.BOOTING, 120)
