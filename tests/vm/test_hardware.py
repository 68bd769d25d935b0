# SPDX-License-Identifier: Apache-2.0
"""What templates say of a VM's hardware, as guests see it."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from guests import build_guest
from harness import HYPERVISORS, Console, Supervised, guest_template, supervised
from loaders import make_guest_disk
from ovmf import provide_firmware

from pvc.model.vm import Accel, Disk, ExtraDisk, Mount, Phase, VmTemplate
from pvc.plan.qemumemory import guest_memory_mib

pytestmark = pytest.mark.vm


def launch(tmp_path: Path, template: VmTemplate, memory_mib: int = 640) -> AbstractContextManager[Supervised]:
    return supervised(tmp_path, template, memory_mib=memory_mib)


@pytest.mark.parametrize("hypervisor", HYPERVISORS)
def test_uefi_and_more_disks(tmp_path: Path, hypervisor: str) -> None:
    provide_firmware(tmp_path)
    base = tmp_path / "base.raw"
    base.write_bytes(b"on the second disk".ljust(1 << 20, b"\0"))
    disks = (ExtraDisk(Disk(os.fspath(base), "raw", 1 << 20), 2 << 20, iothread=True), ExtraDisk(None, 5 << 20))
    with launch(
        tmp_path, guest_template(build_guest(), firmware="uefi", disks=disks, hypervisor=hypervisor)
    ) as cluster:
        cluster.wait_phase(0, Phase.BOOTING)
        with cluster.connect() as connection:
            console = Console(connection, 0)
            console.wait_prompt()
            console.send(b"[ -d /sys/firmware/efi ] && echo u''efi; cd /sys/block\n")
            console.send(b"for disk in vd*; do echo D:$(cat $disk/serial):$(cat $disk/size); done\n")
            console.send(b"head -c 18 /dev/vdb; echo; dd if=/dev/zero of=/dev/vdc bs=1M count=5; echo 0$?do''ne\n")
            said = console.wait(b"0done").decode(errors="replace")
        assert "uefi" in said
        assert "D:disk1:4096" in said
        assert "D:disk2:10240" in said
        assert "on the second disk" in said
    assert base.read_bytes().startswith(b"on the second disk")


@pytest.mark.parametrize(("firmware", "tpm"), [("uefi", ""), ("uefi-secure", "2.0")])
def test_a_disk_that_uefi_boots(tmp_path: Path, firmware: str, tpm: str) -> None:
    provide_firmware(tmp_path)
    make_guest_disk(tmp_path / "base.raw", tmp_path)
    disk = Disk(os.fspath(tmp_path / "base.raw"), "raw", (tmp_path / "base.raw").stat().st_size)
    template = guest_template(build_guest(), disk, boot=None, firmware=firmware, tpm=tpm)
    with launch(tmp_path, template) as cluster:
        cluster.wait_phase(0, Phase.BOOTING)
        with cluster.connect() as connection:
            console = Console(connection, 0)
            console.wait(b"BdsDxe: starting", 200)
            console.wait(b"/ # ", 250)
            console.send(b"dmesg | grep -i 'secure boot'\n")
            console.send(b"cat /sys/class/tpm/tpm0/pcr-sha256/7; cat /proc/cmdline; echo do''ne\n")
            said = console.wait(b"\r\ndone").decode(errors="replace")
        assert f"Secure boot {'enabled' if firmware == 'uefi-secure' else 'disabled'}" in said
        assert "BOOT_IMAGE=/vmlinuz console=ttyS0" in said
        if tpm:
            # What the firmware measured of its keys.
            assert re.search(r"\r\n(?!0{64})[0-9A-F]{64}\r\n", said)
        variables = next((tmp_path / "run").glob("*/uefi-variables"))
        assert variables.stat().st_mode & 0o777 == 0o600


def test_secure_boot_refuses_what_nobody_signed(tmp_path: Path) -> None:
    provide_firmware(tmp_path)
    kernel = tmp_path / "vmlinuz"
    kernel.write_bytes(build_guest().kernel.read_bytes() + bytes(16))
    with kernel.open("r+b") as stream:
        stream.seek(1 << 20)
        stream.write(b"changed")
    make_guest_disk(tmp_path / "base.raw", tmp_path, kernel=kernel)
    disk = Disk(os.fspath(tmp_path / "base.raw"), "raw", (tmp_path / "base.raw").stat().st_size)
    with launch(tmp_path, guest_template(build_guest(), disk, boot=None, firmware="uefi-secure")) as cluster:
        cluster.wait_phase(0, Phase.BOOTING)
        with cluster.connect() as connection:
            Console(connection, 0).wait(b"bad shim signature", 250)


def test_the_old_machine_has_a_tpm_and_directories(tmp_path: Path) -> None:
    (tmp_path / "share").mkdir()
    (tmp_path / "share/said").write_text("by the host\n")
    mount = Mount(os.fspath(tmp_path / "share"), "/data", tag="data", type="virtiofs")
    disks = (ExtraDisk(None, 5 << 20),)
    template = guest_template(build_guest(), machine_type="pc", tpm="2.0", mounts=(mount,), disks=disks)
    with launch(tmp_path, template) as cluster:
        cluster.wait_phase(0, Phase.BOOTING)
        with cluster.connect() as connection:
            console = Console(connection, 0)
            console.wait_prompt()
            console.send(b"cat /data/said /sys/block/vd*/size /sys/class/tpm/tpm0/tpm_version_major; echo do''ne\n")
            said = console.wait(b"\r\ndone").decode(errors="replace")
        assert "by the host" in said
        assert "\r\n10240\r\n" in said
        assert "\r\n2\r\n" in said


@contextmanager
def huge_pages(count: int) -> Iterator[None]:
    """So many more 2 MiB pages on this machine, which has one pool for all; put back by subtraction."""
    pool = Path("/proc/sys/vm/nr_hugepages")

    def add(pages: int) -> int:
        with Path(__file__).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            before = int(pool.read_text())
            pool.write_text(str(before + pages))
            return int(pool.read_text()) - before

    got = add(count)
    try:
        if got < count:
            pytest.skip(f"the kernel has only {got} of {count} huge pages to give")
        yield
    finally:
        add(-got)


def find_qemus(directory: Path) -> list[Path]:
    """The processes of VMs that have something below a directory."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            if b"qemu-system" in words[0] and any(os.fsencode(directory) in word for word in words):
                found.append(process)
    return found


@pytest.mark.parametrize("hypervisor", HYPERVISORS)
def test_memory_in_huge_pages(tmp_path: Path, hypervisor: str) -> None:
    memory_mib = 640
    guest_mib = guest_memory_mib(memory_mib, Accel.TCG, libvirt=hypervisor == "libvirt")
    with (
        huge_pages(guest_mib // 2 + 8),
        launch(tmp_path, guest_template(build_guest(), hugepages="2M", hypervisor=hypervisor), memory_mib) as cluster,
    ):
        cluster.wait_phase(0, Phase.BOOTING)
        with cluster.connect() as connection:
            console = Console(connection, 0)
            console.wait_prompt()
            (qemu,) = find_qemus(tmp_path)
            smaps = (qemu / "smaps").read_text()
            huge = sum(map(int, re.findall(r"(?:Shared|Private)_Hugetlb: +(\d+) kB", smaps)))
            assert guest_mib * 1024 <= huge <= guest_mib * 1024 + 2048
            console.send(b"awk '/MemTotal/{print $2}' /proc/meminfo; echo do''ne\n")
            said = console.wait(b"\r\ndone").decode(errors="replace")
        found = re.search(r"\r\n(\d+)\r\n", said)
        assert found, said
        assert guest_mib * 0.7 < int(found[1]) / 1024 <= guest_mib


def test_an_emulated_microvm_knows_its_clock(tmp_path: Path) -> None:
    """Without that it hangs at times before its first line."""
    with launch(tmp_path, guest_template(build_guest(), machine_type="microvm")) as cluster:
        cluster.wait_phase(0, Phase.BOOTING)
        with cluster.connect() as connection:
            console = Console(connection, 0)
            console.wait_prompt()
            console.send(b"cat /proc/cmdline; dmesg | grep -i tsc; ls /sys/bus/virtio/devices/; echo do''ne\n")
            said = console.wait(b"\r\ndone").decode(errors="replace")
        khz = re.search(r"tsc_early_khz=(\d+)", said)
        assert khz, said
        # The kernel has it from there, and agrees.
        assert f"tsc: Detected {int(khz[1]) // 1000}." in said, said
        assert "virtio" in said


def test_a_kernel_that_uefi_cannot_start(tmp_path: Path) -> None:
    kernel = tmp_path / "vmlinux"
    kernel.write_bytes(b"\x7fELF" + bytes(60))
    template = guest_template(build_guest(), firmware="uefi")
    assert template.boot is not None
    with launch(tmp_path, replace(template, boot=replace(template.boot, kernel=os.fspath(kernel)))) as cluster:
        failed = cluster.wait_phase(0, Phase.FAILED)
        assert "uefi cannot start the kernel of its image, an ELF file" in failed.detail
