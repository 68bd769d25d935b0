# SPDX-License-Identifier: Apache-2.0
"""What single keys of templates take, and which do not go together."""

from __future__ import annotations

from pathlib import Path

import pytest

from pvc.model.drive import Mmp, PersistentDrive
from pvc.model.site import DiskWish
from pvc.model.vm import Hooks
from tests.unit.config.sites import write_site
from tests.unit.config.test_load import load_site, problems_of


def problem(tmp_path: Path, text: str) -> str:
    (found,) = problems_of(write_site(tmp_path, templates=f"t: {{{text}}}\n"))
    return found.removeprefix("templates.yaml:1: ")


def test_sizes_and_disks(tmp_path: Path) -> None:
    text = """
t:
  image: x
  cores: 4
  memory: 1.5G
  hugepages: 2M
  firmware: uefi
  tpm: 2.0
  hooks: {before-start: /x, after-stop: [y, '%{vm_rank}', '%{user}'], timeout: 9}
  disk-size: 20G
  disk-discard: no
  disks:
    - size: 10G
    - {image: data, bus: scsi, cache: none}
    - {image: '%{user}', size: 1T, discard: no, iothread: yes}
u: {inherits: t, disks: [], hugepages: no, tpm: none, memory: '2048'}
"""
    templates = load_site(write_site(tmp_path, templates=text)).templates
    found = templates["t"]
    assert (found.cores, found.memory, found.hugepages, found.firmware) == (4, 1536, "2M", "uefi")
    assert found.tpm == "2.0"
    assert found.hooks == Hooks(("/x",), after_stop=("y", "%{vm_rank}", "anne"), timeout_s=9)
    assert (found.disk_size, found.disk_discard, found.disk_iothread) == (20 << 30, False, True)
    assert found.disks == (
        DiskWish(None, 10 << 30),
        DiskWish("data", None, "scsi", "none"),
        DiskWish("anne", 1 << 40, discard=False, iothread=True),
    )
    heir = templates["u"]
    assert (heir.disks, heir.hugepages, heir.tpm, heir.memory, heir.cores) == ((), "", "", 2048, 4)


def test_persistent_drives(tmp_path: Path) -> None:
    text = """
t:
  disk-cache: none
  disk-aio: native
  persistent-drives:
    - /scratch/%{user}/home.raw
    - /scratch/vm%{vm_rank}.qcow2: {size: 20G, cache: none, aio: io_uring, iothread: yes}
    - /scratch/shared: {mmp: cluster}
    - /scratch/free: {mmp: no, cache: writethrough, bus: scsi, discard: no}
    - /scratch/odd.qcow2: {format: raw, mmp: yes}
    - /scratch/plain:
u: {inherits: t, persistent-drives: []}
"""
    templates = load_site(write_site(tmp_path, templates=text)).templates
    assert templates["t"].disk_aio == "native"
    assert templates["t"].persistent_drives == (
        PersistentDrive("/scratch/anne/home.raw"),
        PersistentDrive(
            "/scratch/vm%{vm_rank}.qcow2", "qcow2", cache="none", size=20 << 30, aio="io_uring", iothread=True
        ),
        PersistentDrive("/scratch/shared", mmp=Mmp.CLUSTER),
        PersistentDrive("/scratch/free", mmp=Mmp.NO, cache="writethrough", bus="scsi", discard=False),
        PersistentDrive("/scratch/odd.qcow2"),
        PersistentDrive("/scratch/plain"),
    )
    assert templates["u"].persistent_drives == ()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("persistent-drives: [data]", "t.persistent-drives[0]: 'data' is not the absolute path of a file"),
        ("persistent-drives: [/a/]", "t.persistent-drives[0]: '/a/' is not the absolute path of a file"),
        ("persistent-drives: [/a, '/b/../a']", "t.persistent-drives[1]: /a is there twice"),
        (
            "persistent-drives: [{/a: {}, /b: {}}]",
            "t.persistent-drives[0]: each drive is a list item of its own, with one path",
        ),
        ("persistent-drives: [{'7': {}}]", "t.persistent-drives[0]: '7' is not the absolute path of a file"),
        ("persistent-drives: [{/a: {mmp: maybe}}]", "t.persistent-drives[0]./a.mmp: 'maybe' is not yes, cluster or no"),
        (
            "persistent-drives: [{/a: {backup: x}}]",
            "t.persistent-drives[0]./a.backup: is not supported: copy the file while no VM uses it",
        ),
        (
            "persistent-drives: [{/a.qcow2: {mmp: cluster}}]",
            "t.persistent-drives[0]: a qcow2 file can have one writer only: mmp must be yes, or the format raw",
        ),
        (
            "persistent-drives: [{/a: {aio: native}}]",
            "t.persistent-drives[0]: aio native needs the cache none or directsync, not writeback",
        ),
        ("disk-aio: native", "t.disk-aio: aio native needs the cache none or directsync, not unsafe"),
        (
            "disks: [{size: 1G, aio: native}]",
            "t.disks[0]: aio native needs the cache none or directsync, not unsafe",
        ),
        ("slurm-args: ['--mem=3G']", "t.slurm-args[0]: --mem: the definition, cores and memory say this"),
        ("slurm-args: [-n4]", "t.slurm-args[0]: -n4: the definition, cores and memory say this"),
        ("slurm-args: [--partition, long]", "t.slurm-args[1]: 'long' is not one word such as --partition=long"),
        ("gres: 'gpu 1'", "t.gres: 'gpu 1' is not a list of texts, or one without brackets"),
        ("cores: 0", "t.cores: 0 is not a number from 1 to 4096"),
        ("memory: 63M", "t.memory: '63M' is not from 64M to 64T"),
        ("memory: much", "t.memory: 'much' is not a size such as 512M or 4G"),
        ("hugepages: 4K", "t.hugepages: '4K' is not no, 2M or 1G"),
        ("firmware: efi", "t.firmware: 'efi' is not bios, uefi or uefi-secure"),
        ("hooks: {reachable: bin/x}", "t.hooks: reachable: 'bin/x' is neither an absolute path nor a program's name"),
        ("hooks: {after: /x}", "t.hooks.after: unknown key; did you mean 'after-stop'?"),
        ("hooks: {timeout: 0}", "t.hooks.timeout: 0 is not a number from 1 to 3600"),
        ("hooks: {after-stop: [yes]}", "t.hooks.after-stop[0]: yes is not a program or its argument"),
        ("tpm: '1.2'", "t.tpm: '1.2' is not none or 2.0"),
        ("tpm: yes", "t.tpm: yes is not none or 2.0"),
        ("disks: [{}]", "t.disks[0]: neither size nor image is given"),
        ("disks: [{size: 1G, bus: ide}]", "t.disks[0].bus: 'ide' is not virtio or scsi"),
        ("disks: [{size: 1K}]", "t.disks[0].size: '1K' is not from 1M to 1024T"),
        (
            "disks: [{size: 1G, bus: scsi, iothread: yes}]",
            "t.disks[0]: iothread is for disks on virtio; scsi disks share their controller's",
        ),
        ("firmware: uefi, machine-type: microvm", "t.firmware: a microvm has no uefi firmware"),
        ("firmware: uefi-secure, machine-type: 'pc,usb=off'", "t.firmware: uefi-secure needs a q35, not 'pc'"),
        ("disk-model: ide, machine-type: microvm", "t.disk-model: a microvm has no ide"),
        ("tpm: '2.0', machine-type: microvm", "t.tpm: a microvm has no TPM"),
        ("disk-size: 9G", "t.disk-size: there is no image whose disk could have a size; disks has others"),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str, told: str) -> None:
    assert problem(tmp_path, text) == told


def test_a_conflict_is_told_where_it_is_made(tmp_path: Path) -> None:
    text = "a: {firmware: uefi-secure}\nb: {inherits: a}\nc: {inherits: b, machine-type: pc}\nd: {inherits: c}\n"
    assert problems_of(write_site(tmp_path, templates=text)) == [
        "templates.yaml:3: c.machine-type: uefi-secure needs a q35, not 'pc'"
    ]
