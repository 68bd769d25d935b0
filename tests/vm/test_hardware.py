"""What templates say of a VM's hardware, as guests see it."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from guests import build_guest
from harness import Console, FakeNode, Launched, guest_template, make_grant, make_keys, make_spec
from ovmf import provide_firmware

from pvc.model.node import VmGrant
from pvc.model.vm import Disk, ExtraDisk, Phase, VmTemplate

pytestmark = pytest.mark.vm


def launch(tmp_path: Path, template: VmTemplate) -> tuple[FakeNode, Launched]:
    run_dir = tmp_path / "run"
    run_dir.mkdir(mode=0o700)
    node = FakeNode(tmp_path / "sock", make_grant(run_dir, [VmGrant(0, (), {})]))
    spec = make_spec([template], make_keys(tmp_path / "keys"), memory_mib=480)
    return node, Launched(spec, tmp_path / "sock", home=tmp_path)


def test_uefi_and_more_disks(tmp_path: Path) -> None:
    provide_firmware(tmp_path)
    base = tmp_path / "base.raw"
    base.write_bytes(b"on the second disk".ljust(1 << 20, b"\0"))
    disks = (ExtraDisk(Disk(os.fspath(base), "raw", 1 << 20), 2 << 20, iothread=True), ExtraDisk(None, 5 << 20))
    node, cluster = launch(tmp_path, guest_template(build_guest(), firmware="uefi", disks=disks))
    try:
        cluster.wait_phase(0, Phase.BOOTING)
        with cluster.connect() as connection:
            console = Console(connection, 0)
            console.wait_prompt()
            console.send(b"[ -d /sys/firmware/efi ] && echo u''efi; cd /sys/block\n")
            console.send(b"for disk in vd*; do echo D:$(cat $disk/serial):$(cat $disk/size); done\n")
            console.send(b"head -c 18 /dev/vdb; echo; dd if=/dev/zero of=/dev/vdc bs=1M count=5; echo 0$?do''ne\n")
            said = console.wait(b"0done", 60).decode(errors="replace")
        assert "uefi" in said
        assert "D:disk1:4096" in said
        assert "D:disk2:10240" in said
        assert "on the second disk" in said
    finally:
        cluster.close()
        node.close()
    assert base.read_bytes().startswith(b"on the second disk")


@pytest.mark.parametrize("firmware", ["uefi", "uefi-secure"])
def test_firmware_looks_for_something_to_boot(tmp_path: Path, firmware: str) -> None:
    provide_firmware(tmp_path)
    base = tmp_path / "base.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", base, "64M"], check=True)
    changes: dict[str, Any] = {"boot": None, "firmware": firmware}
    node, cluster = launch(tmp_path, guest_template(build_guest(), Disk(os.fspath(base), "qcow2", 64 << 20), **changes))
    try:
        cluster.wait_phase(0, Phase.BOOTING)
        with cluster.connect() as connection:
            Console(connection, 0).wait(b"BdsDxe", 100)
        variables = next((tmp_path / "run").glob("*/uefi-variables"))
        assert variables.stat().st_mode & 0o777 == 0o600
    finally:
        cluster.close()
        node.close()


def test_a_kernel_that_uefi_cannot_start(tmp_path: Path) -> None:
    kernel = tmp_path / "vmlinux"
    kernel.write_bytes(b"\x7fELF" + bytes(60))
    template = guest_template(build_guest(), firmware="uefi")
    assert template.boot is not None
    node, cluster = launch(tmp_path, replace(template, boot=replace(template.boot, kernel=os.fspath(kernel))))
    try:
        failed = cluster.wait_phase(0, Phase.FAILED)
        assert "uefi cannot start the kernel of its image, an ELF file" in failed.detail
    finally:
        cluster.close()
        node.close()
