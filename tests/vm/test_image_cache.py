# SPDX-License-Identifier: Apache-2.0
"""Copies of images on a node: the next start reads them, whatever happens to the repository."""

from __future__ import annotations

import fcntl
import hashlib
import os
from pathlib import Path

import pytest
from guests import build_guest
from harness import Console, Launched, guest_template, supervised

from pvc.model.node import ImageCache
from pvc.model.vm import Disk, Phase
from tests.waits import wait_until

pytestmark = pytest.mark.vm

MIB = 1 << 20


def read_open_files(cluster: Launched) -> set[str]:
    (qemu,) = cluster.qemu_pids()
    return {os.readlink(entry.path) for entry in os.scandir(f"/proc/{qemu}/fd")}


def restart(cluster: Launched) -> dict[str, object]:
    assert cluster.ask(op="order", order="stop", vms=[0])["vms"][0]["error"] is None
    found: dict[str, object] = cluster.ask(op="order", order="start", vms=[0])["vms"][0]
    return found


def test_the_next_start_reads_the_copy(tmp_path: Path) -> None:
    content = b"what the image holds".ljust(4 * MIB, b"\0")
    base = tmp_path / "repository" / hashlib.sha256(content).hexdigest()
    base.parent.mkdir()
    base.write_bytes(content)
    cache = tmp_path / "cache"
    cache.mkdir(mode=0o700)
    image_cache = ImageCache(os.fspath(cache), 64 * MIB)
    template = guest_template(build_guest(), Disk(os.fspath(base), "raw", 4 * MIB))
    with open(cache / f".{base.name}.part", "wb") as part:
        # As somebody else who fills it: no copy is ready before the VM.
        fcntl.flock(part, fcntl.LOCK_EX)
        with supervised(tmp_path / "before", template, image_cache=image_cache) as cluster:
            cluster.wait_phase(0, Phase.BOOTING)
            assert os.fspath(base) in read_open_files(cluster)
    with supervised(tmp_path, template, image_cache=image_cache) as cluster:
        cluster.wait_phase(0, Phase.BOOTING)
        wait_until(lambda: os.listdir(cache) == [base.name])
        assert (cache / base.name).read_bytes() == content
        base.unlink()
        assert restart(cluster)["error"] is None
        assert os.fspath(cache / base.name) in read_open_files(cluster)
        assert os.fspath(base) not in read_open_files(cluster)
        with cluster.connect() as connection:
            console = Console(connection, 0)
            console.wait_prompt()
            console.send(b"head -c 20 /dev/vda; echo; echo do''ne\n")
            assert b"what the image holds" in console.wait(b"done")
    assert os.listdir(cache) == [base.name]


def test_an_image_deleted_under_a_running_vm(tmp_path: Path) -> None:
    """It goes on; a new start is refused, and says which file is not there any more."""
    base = tmp_path / "base.raw"
    base.write_bytes(b"still here".ljust(4 * MIB, b"\0"))
    template = guest_template(build_guest(), Disk(os.fspath(base), "raw", 4 * MIB))
    with supervised(tmp_path, template) as cluster:
        cluster.wait_phase(0, Phase.BOOTING)
        base.unlink()
        with cluster.connect() as connection:
            console = Console(connection, 0)
            console.wait_prompt()
            console.send(b"head -c 10 /dev/vda; echo; dd if=/dev/vda of=/dev/null bs=1M; echo do''ne $?\n")
            assert b"still here" in console.wait(b"done 0")
        found = restart(cluster)
        assert "did not start" in str(found["error"])
        assert f"{base}" in str(found["error"])
        assert "No such file" in str(found["error"])
