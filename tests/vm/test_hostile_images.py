# SPDX-License-Identifier: Apache-2.0
"""A repository's owner who changes an image at the worst moment: between the supervisor's look and QEMU's.

That moment is met exactly by a ``qemu-bin`` which lets the attacker act and then becomes QEMU. Beside each attack there
is a VM whose image nobody touches: it must run.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from guests import build_guest
from harness import HYPERVISORS, Console, FakeNode, Launched, guest_template, make_grant, make_keys, make_spec

from pvc.host.overlay import write_overlay
from pvc.model.node import VmGrant
from pvc.model.vm import Disk, Phase
from pvc.plan.disks import plan_empty

pytestmark = pytest.mark.vm

SIZE = 1 << 20
SECRET = b"the victim's private file"
HONEST = b"what the image holds"
ATTACKER = 12345


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """``secret`` is the victim's; an attacker's are ``good``, ``raw`` and ``evil``, a qcow2 with data in ``secret``."""
    secret = tmp_path / "secret"
    raw = tmp_path / "raw"
    raw.write_bytes(HONEST.ljust(SIZE, b"\0"))
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", raw, tmp_path / "good"], check=True)
    options = f"data_file={secret},data_file_raw=on"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", options, tmp_path / "evil", str(SIZE)], check=True)
    secret.write_bytes(SECRET.ljust(SIZE, b"\0"))
    secret.chmod(0o600)
    return tmp_path


def meanwhile(world: Path, act: str) -> Path:
    """A QEMU before which the attacker acts, each time that it starts a VM."""
    real = shutil.which("qemu-system-x86_64")
    (world / "bin").mkdir()
    program = world / "bin/qemu-system-x86_64"
    program.write_text(f'#!/bin/sh\ncase "$*" in *debug-threads*) {act} ;; esac\nexec {real} "$@"\n')
    program.chmod(0o755)
    return program


@contextmanager
def cluster(world: Path, hypervisor: str, base: str, form: str, **changes: Any) -> Iterator[Launched]:
    """vm0 on an attacker's image, vm1 on an honest one."""
    (world / "run").mkdir()
    shutil.copy(world / "good", world / "honest")
    guest = build_guest()
    templates = [
        guest_template(guest, Disk(str(world / base), form, SIZE), hypervisor=hypervisor, name="attacked", **changes),
        guest_template(guest, Disk(str(world / "honest"), "qcow2", SIZE), hypervisor=hypervisor),
    ]
    node = FakeNode(world / "sock", make_grant(world / "run", [VmGrant(0, (), {}), VmGrant(1, (), {})]))
    launched = Launched(make_spec(templates, make_keys(world / "keys")), world / "sock", home=world)
    try:
        yield launched
    finally:
        launched.close()
        node.close()


def read_disk(launched: Launched, rank: int) -> bytes:
    """What the guest finds at the beginning of its disk."""
    launched.wait_phase(rank, Phase.BOOTING)
    with launched.connect() as connection:
        console = Console(connection, rank)
        console.wait_prompt()
        console.send(b"echo BE''GIN; head -c 25 /dev/vda | tr '\\000' .; echo E''ND\n")
        return console.wait(b"END").partition(b"BEGIN")[2]


@pytest.mark.parametrize("hypervisor", HYPERVISORS)
def test_an_image_exchanged_before_the_start_opens_no_other_file(world: Path, hypervisor: str) -> None:
    with cluster(world, hypervisor, "evil", "qcow2") as launched:
        failed = launched.wait_phase(0, Phase.FAILED)
        assert "evil is refused: its data is in another file" in failed.detail
        assert HONEST in read_disk(launched, 1)


@pytest.mark.parametrize("hypervisor", HYPERVISORS)
def test_a_header_written_between_the_two_looks_gives_the_guest_nothing(world: Path, hypervisor: str) -> None:
    """The owner writes in place: descriptor, owner and name stay what they were."""
    program = meanwhile(world, f"dd if={world}/evil of={world}/good conv=notrunc status=none")
    with cluster(world, hypervisor, "good", "qcow2", qemu_bin=str(program)) as launched:
        failed = launched.wait_phase(0, Phase.FAILED)
        assert "its header was changed, and names another file for its data" in failed.detail
        assert (world / "good").read_bytes()[:4096] == (world / "evil").read_bytes()[:4096]
        assert HONEST in read_disk(launched, 1)
        assert len(launched.qemu_pids()) <= 1, "the attacked one has ended"


def test_qemu_reads_the_file_that_was_looked_at(world: Path) -> None:
    """The name of a raw image leads to the victim's file when QEMU starts; libvirt's QEMU opens that and is ended."""
    program = meanwhile(world, f"ln -sfn {world}/secret {world}/raw")
    with cluster(world, "qemu", "raw", "raw", qemu_bin=str(program)) as launched:
        assert HONEST in read_disk(launched, 0)
        assert (world / "raw").is_symlink()
        assert HONEST in read_disk(launched, 1)


def test_libvirt_s_qemu_that_opened_another_file_ends(world: Path) -> None:
    program = meanwhile(world, f"ln -sfn {world}/secret {world}/raw")
    with cluster(world, "libvirt", "raw", "raw", qemu_bin=str(program)) as launched:
        failed = launched.wait_phase(0, Phase.FAILED)
        assert "raw was exchanged while the VM started" in failed.detail
        assert HONEST in read_disk(launched, 1)


@pytest.mark.parametrize("hypervisor", HYPERVISORS)
def test_a_disk_is_saved_into_a_new_file_of_ones_own_alone(world: Path, hypervisor: str) -> None:
    """The owner of a repository exchanges the file that a save fills: QEMU would write into the victim's."""
    with cluster(world, hypervisor, "good", "qcow2") as launched:
        launched.wait_phase(0, Phase.BOOTING)
        foreign = world / "foreign"
        shutil.copy(world / "evil", foreign)
        os.chown(foreign, ATTACKER, ATTACKER)
        foreign.chmod(0o666)
        (world / "evil").chmod(0o600)
        for target, why in (foreign, "is not a new file that is yours alone"), (world / "evil", "another file"):
            answer = launched.ask(op="save", vm=0, disk=0, path=str(target), full=True)
            assert not answer["ok"], target
            assert why in str(answer), target
        assert (world / "secret").read_bytes().startswith(SECRET)
        mine = world / "mine"
        write_overlay(mine, plan_empty(SIZE))
        with launched.connect() as connection:
            request = b'{"op": "save", "vm": 0, "disk": 0, "full": true, "path": "%s"}\n' % os.fsencode(mine)
            connection.sendall(request)
            answers = connection.makefile("rb").read().splitlines()
        assert json.loads(answers[-1])["ok"], answers
        subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", mine, world / "saved"], check=True)
        assert (world / "saved").read_bytes().startswith(HONEST)
