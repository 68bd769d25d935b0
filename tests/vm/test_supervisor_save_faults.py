# SPDX-License-Identifier: Apache-2.0
"""Saves that fail, are left by their callers, or lose their supervisor: no image, and the guest goes on."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from savers import SIZE, Saver, make_base, started

from pvc.errors import GuestError, HostError, UsageError
from pvc.images.repository import Repositories
from pvc.images.streams import Progress
from pvc.model.site import Repository
from pvc.ops.save import Wish, save
from tests.waits import wait_until

pytestmark = pytest.mark.vm


def test_no_half_images(tmp_path: Path) -> None:
    base = make_base(tmp_path).find("base")
    small = tmp_path / "small"
    small.mkdir()
    # Room for the kernel and the initrd, not for 16 MiB of the disk.
    room = sum(blob.size for blob in base.blobs) - base.disk.size + (8 << 20)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={room}", "tmpfs", small], check=True)
    try:
        wanted = Repositories([Repository("site", os.fspath(tmp_path / "site")), Repository("small", f"{small}/r")])
        with started(tmp_path / "a", wanted, "base") as saver:
            with saver.shell() as console:
                console.send(b"dd if=/dev/urandom of=/dev/vda bs=1M seek=1 count=16 conv=fsync; echo FIL''LED\n")
                console.wait(b"FILLED", 120)
            check_failures(saver)
            check_kills(saver, tmp_path)
    finally:
        subprocess.run(["umount", small], check=True)


def check_failures(saver: Saver) -> None:
    """What cannot be saved leaves neither an image nor anything in QEMU."""
    small = saver.where.store("small")
    with pytest.raises(HostError, match="No space left on device"):
        saver.save("small:x")
    with pytest.raises(HostError, match="No space left on device") as caught:
        saver.save("small:x", full=True)
    assert "free space there" in (caught.value.find_hint() or "")
    assert small.list_revisions() == {}
    assert small.measure() == 0
    assert not list((small.path / ".tmp").iterdir())
    with pytest.raises(UsageError, match="numbered by the repository"):
        saver.save("x@3")
    for request in (
        {"path": "relative"},
        {"path": "/dev/null"},
        {"path": "/no/such/file"},
        {"path": "/tmp", "disk": "0"},
        {"path": "/tmp", "disk": 7},
        {"path": "/tmp", "speed": -1},
    ):
        assert saver.cluster.ask(op="save", vm=0, **request)["ok"] is False
    assert saver.is_clean()


def check_kills(saver: Saver, base: Path) -> None:
    """A caller who leaves ends the job; a supervisor that is killed ends the save with an error."""
    target = base / "target.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", target, str(SIZE)], check=True)
    request = {"op": "save", "vm": 0, "path": os.fspath(target), "full": True, "speed": 1 << 16}
    with saver.cluster.connect() as connection:
        connection.sendall(json.dumps(request).encode() + b"\n")
        assert "done" in json.loads(connection.makefile("rb").readline())
    wait_until(saver.is_clean, 120)
    before = saver.where.store("site").list_revisions()
    stops = stopping(saver)
    with pytest.raises(GuestError, match="vm0 ended while its disk was saved"):
        save(saver.control, saver.endpoint, Wish("vm0", 0, image="stopped", speed=1 << 20), saver.where, "me", stops)
    assert saver.cluster.ask(op="order", order="start", vms=[0])["vms"][0]["error"] is None

    def kill(_what: str, done: int, _total: int) -> None:
        if done:
            saver.cluster.process.kill()

    wish = Wish("vm0", 0, image="killed", speed=1 << 20)
    with pytest.raises((HostError, GuestError), match="answer"):
        save(saver.control, saver.endpoint, wish, saver.where, "me", kill)
    assert saver.where.store("site").list_revisions() == before
    assert not list((saver.where.store("site").path / ".tmp").iterdir())


def stopping(saver: Saver) -> Progress:
    """Progress that stops the VM once some of its disk is copied."""

    def stop(_what: str, done: int, _total: int) -> None:
        if done:
            assert saver.cluster.ask(op="order", order="stop", vms=[0])["ok"]

    return stop
