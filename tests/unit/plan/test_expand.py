# SPDX-License-Identifier: Apache-2.0
"""What is put into templates when their VMs start."""

from __future__ import annotations

from dataclasses import replace

from pvc.model.drive import PersistentDrive
from pvc.model.vm import DirectBoot, Disk, DiskFile, ExtraDisk, Mount, VmTemplate
from pvc.plan.expand import fill_template, find_image_files, localize

DISK = Disk("/r/top", "qcow2", 1 << 30, (DiskFile("/r/base", "raw"),), "site:debian@3")
TEMPLATE = VmTemplate(
    "debian",
    DISK,
    DirectBoot("/r/kernel", "/r/initrd", "quiet"),
    "nat",
    disks=(ExtraDisk(None, 1 << 30), ExtraDisk(replace(DISK, path="/r/other", below=()), 1 << 30)),
    drives=(PersistentDrive("/data/%{job_id}-%{vm_rank}"),),
    mounts=(Mount("/home/%{vm_rank}", "/mnt"),),
    custom_args=("-name", "%{vm_rank}"),
)


def test_ranks_and_jobs() -> None:
    found = fill_template(TEMPLATE, 3, 12)
    assert found.drives[0].path == "/data/12-3"
    assert (found.mounts[0].source, found.custom_args) == ("/home/3", ("-name", "3"))


def test_copies_stand_for_files_and_change_nothing_else() -> None:
    files = ("/r/base", "/r/top", "/r/other", "/r/kernel", "/r/initrd")
    assert find_image_files(TEMPLATE) == files
    moved = localize(TEMPLATE, {path: f"/c{path}" for path in files})
    assert find_image_files(moved) == tuple(f"/c{path}" for path in files)
    assert moved.disk is not None
    assert (moved.disk.image, moved.disk.size) == (DISK.image, DISK.size)
    assert localize(moved, {f"/c{path}": path for path in files}) == TEMPLATE
    assert localize(TEMPLATE, {}) == TEMPLATE
    plain = VmTemplate("none", None, DirectBoot("/k", None, ""), "nat")
    assert find_image_files(plain) == ("/k",)
    assert localize(plain, {"/k": "/c/k"}).boot == DirectBoot("/c/k", None, "")
