# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest

from pvc import codec
from pvc.errors import GuestError
from pvc.model.drive import Mmp, PersistentDrive
from pvc.model.hardware import Hardware
from pvc.model.node import Nic
from pvc.model.vm import Accel, DirectBoot, Disk, ExtraDisk, Firmware, Mount, VmTemplate
from pvc.plan.expand import find_image_files
from pvc.plan.hardware import Wanted, plan_hardware
from pvc.plan.qemu import QemuSpec, VmFds, boot_words, qemu_argv
from pvc.plan.qemudrives import DriveFd, VmPaths

GOLDEN = Path(__file__).parents[1] / "golden"
NIC = Nic("nat", "52:54:00:00:00:03", 1450, "10.200.0.4/16", "10.200.0.1", 0)
DISK = Disk("/images/debian, 12/disk.qcow2", "qcow2", 4 << 30)
BOOT = DirectBoot("/images/vmlinuz", "/images/initrd", "root=/dev/vda console=ttyS0")


def make_spec(template: dict[str, Any] | None = None, **changes: Any) -> QemuSpec:
    """``changes`` are of the specification, and of what is wanted besides the template."""
    base = VmTemplate(**{"name": "debian", "disk": DISK, "boot": None, "resource_set": "nat"} | (template or {}))
    paths = changes.pop("paths", VmPaths("/run/12/vm3/disk.qcow2", "/run/12/vm3/seed.iso"))
    wanted = Wanted(2, 768, Accel.KVM, (NIC,), seed=paths.seed is not None, firmware=paths.firmware)
    own = {each.name for each in dataclasses.fields(Wanted)} & changes.keys()
    wanted = dataclasses.replace(wanted, **{key: changes.pop(key) for key in own})
    fds = changes.pop("fds", VmFds(qmp=7, console=9, taps=(11,)))
    files = [*find_image_files(base), *([] if paths.firmware is None else [paths.firmware.code])]
    fds = dataclasses.replace(fds, images={path: fd for fd, path in enumerate(files, start=31)})
    return QemuSpec("vm3", plan_hardware("vm3", base, wanted), base, paths, fds, **changes)


SECOND_NIC = dataclasses.replace(NIC, network="lan", mac="52:54:00:00:01:03", address=None, gateway=None, tap_index=1)
SCENARIOS = {
    "kvm": make_spec(),
    "tcg-direct-boot": make_spec({"boot": BOOT}, accel=Accel.TCG),
    "two-nics": make_spec(nics=(NIC, SECOND_NIC), fds=VmFds(7, 9, (11, 12))),
    "no-disk-no-net": make_spec({"disk": None, "boot": BOOT}, nics=(), fds=VmFds(7, 9, ()), paths=VmPaths(None, None)),
    "network-boot": make_spec({"disk": None}, paths=VmPaths(None, None)),
    "channels": make_spec(ports=("org.pvc.agent", "org.pvc.other"), fds=VmFds(7, 9, (11,), (13, 14))),
    "old-hardware": make_spec(
        {"machine_type": "pc", "nic_model": "e1000", "disk_model": "ide", "disk_cache": "writethrough"}
    ),
    "scsi-raw": make_spec({"disk_model": "virtio-scsi", "disk_cache": "none", "disk": Disk("/b.raw", "raw", 1 << 30)}),
    "microvm": make_spec({"machine_type": "microvm", "boot": BOOT}, sandbox=False),
    "microvm-tcg": make_spec({"machine_type": "microvm,pic=off", "boot": BOOT}, accel=Accel.TCG, tsc_khz=2_400_000),
    "devices": make_spec(devices=("0000:3b:00.0", "0000:5e:00.1")),
    "devices-old-hardware": make_spec({"machine_type": "pc"}, devices=("0000:3b:00.0",)),
    "more-disks": make_spec(
        {
            "disk_discard": False,
            "disk_iothread": False,
            "disks": (
                ExtraDisk(None, 1 << 30),
                ExtraDisk(DISK, 8 << 30, "virtio", "none", discard=False, iothread=True),
                ExtraDisk(None, 1 << 40, "scsi", "writeback"),
            ),
        },
        paths=VmPaths("/run/12/vm3/disk.qcow2", "/run/12/vm3/seed.iso", ("/run/1", "/run/2", "/run/3")),
    ),
    "aio": make_spec(
        {
            "disk_aio": "io_uring",
            "disks": (ExtraDisk(None, 1 << 30, cache="directsync", aio="native"),),
        },
        paths=VmPaths("/run/d", "/run/s", ("/run/1",)),
    ),
    "drives": make_spec(
        {
            "disk_aio": "io_uring",
            "disk_cache": "none",
            "disks": (ExtraDisk(None, 1 << 30, cache="directsync", aio="native"),),
            "drives": (
                PersistentDrive("/data/db.raw"),
                PersistentDrive("/data/a.qcow2", "qcow2", cache="none", iothread=True, aio="io_uring"),
                PersistentDrive("/data/shared", mmp=Mmp.CLUSTER, bus="scsi", discard=False),
                PersistentDrive("/data/lustre", mmp=Mmp.NO),
            ),
            "mounts": (Mount("/sw", "/mnt/sw", True, "sw"),),
        },
        paths=VmPaths("/run/d", "/run/s", ("/run/1",)),
        fds=VmFds(7, 9, (11,), drives=(DriveFd(13), DriveFd(14, locks=False), DriveFd(15), DriveFd(16))),
    ),
    "uefi": make_spec({"firmware": "uefi"}, paths=VmPaths("/run/d", "/run/s", (), Firmware("/fw/code", "/run/vars"))),
    "uefi-secure-hugepages": make_spec(
        {"firmware": "uefi-secure", "hugepages": "2M"},
        paths=VmPaths("/run/d", "/run/s", (), Firmware("/fw/code", "/run/vars", "qcow2", smm=True)),
    ),
    "directories": make_spec(
        {
            "disks": (ExtraDisk(None, 1 << 30),),
            "mounts": (Mount("/home/anne, old", "/data", tag="pvc0"), Mount("/sw", "/mnt/sw", True, "sw")),
        },
        paths=VmPaths("/run/d", "/run/s", ("/run/1",)),
    ),
    "virtiofs-tpm": make_spec(
        {
            "tpm": "2.0",
            "mounts": (Mount("/home/anne", "/data", tag="pvc0"), Mount("/a, b", "/mnt/sw", True, "sw", "virtiofs")),
        },
        fds=VmFds(7, 9, (11,), tpm=13, shares=(15,)),
    ),
    "virtiofs-microvm": make_spec(
        {
            "machine_type": "microvm",
            "boot": BOOT,
            "hugepages": "1G",
            "mounts": (Mount("/sw", "/mnt/sw", tag="sw", type="virtiofs"),),
        },
        fds=VmFds(7, 9, (11,), shares=(15,)),
    ),
    "custom-args": make_spec({"custom_args": ("-sandbox", "off", "-device", "i6300esb"), "cpu_model": "EPYC"}),
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_argv_equals_golden(name: str) -> None:
    path = GOLDEN / f"qemu-{name}.argv"
    text = "\n".join(qemu_argv(SCENARIOS[name])) + "\n"
    if os.environ.get("PVC_GOLDEN") == "write":
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.parametrize("changed", [{"disk_cache": "fast"}, {"disk_model": "floppy"}])
def test_unknown_disk_settings_are_named(changed: dict[str, Any]) -> None:
    with pytest.raises(GuestError, match=next(iter(changed.values()))):
        qemu_argv(make_spec(changed))


def test_a_kernel_is_told_no_more_than_it_needs() -> None:
    microvm = make_spec({"machine_type": "microvm", "boot": BOOT}).template
    told = dataclasses.replace(microvm, boot=dataclasses.replace(BOOT, append="tsc_early_khz=1000 quiet"))
    for template, accel, khz, words in (
        (microvm, Accel.TCG, 2_400_000, f"{BOOT.append} no_timer_check tsc_early_khz=2400000"),
        (microvm, Accel.TCG, None, f"{BOOT.append} no_timer_check"),
        (microvm, Accel.KVM, 2_400_000, BOOT.append),
        (told, Accel.TCG, 2_400_000, "tsc_early_khz=1000 quiet no_timer_check"),
        (dataclasses.replace(microvm, machine_type="q35"), Accel.TCG, 2_400_000, f"{BOOT.append} no_timer_check"),
    ):
        hardware = plan_hardware("vm3", template, Wanted(1, 128, accel))
        boot = boot_words(template.boot, hardware, khz)
        assert boot is not None
        assert boot.append == words


def test_a_microvm_has_no_tpm() -> None:
    with pytest.raises(GuestError, match="a microvm has no TPM"):
        make_spec({"machine_type": "microvm", "tpm": "2.0"}, fds=VmFds(7, 9, (11,), tpm=13))


def test_too_many_nics() -> None:
    with pytest.raises(GuestError, match="24 network interfaces"):
        qemu_argv(make_spec(nics=(NIC,) * 24, fds=VmFds(7, 9, tuple(range(24)))))


def test_every_slot_is_used_once() -> None:
    argv = qemu_argv(make_spec(nics=(NIC,) * 23, fds=VmFds(7, 9, tuple(range(23)))))
    slots = [word.partition("addr=")[2].partition(",")[0] for word in argv if "addr=" in word]
    assert len(slots) == len(set(slots)) == 26


def test_more_disks_move_no_interface() -> None:
    disks = tuple(ExtraDisk(None, 1 << 30) for _ in range(3))
    paths = VmPaths("/d", "/s", ("/1", "/2", "/3"))
    few = qemu_argv(make_spec())
    many = qemu_argv(make_spec({"disks": disks}, paths=paths))
    assert [word for word in few if "mac=" in word] == [word for word in many if "mac=" in word]
    with pytest.raises(GuestError, match="3 more disks"):
        qemu_argv(make_spec({"disks": disks}, paths=paths, nics=(NIC,) * 21, fds=VmFds(7, 9, tuple(range(21)))))


@pytest.mark.parametrize("name", SCENARIOS)
def test_hardware_is_a_value(name: str) -> None:
    """It outlives its process, and says nothing of where files are and which descriptors there were."""
    spec = SCENARIOS[name]
    text = codec.dumps(spec.hardware)
    assert codec.loads(Hardware, text) == spec.hardware
    assert "/" not in text
    moved = dataclasses.replace(spec.paths, overlay="/elsewhere", disks=tuple("/else" for _ in spec.paths.disks))
    assert qemu_argv(dataclasses.replace(spec, paths=moved)) != qemu_argv(spec) or spec.paths.overlay is None


@pytest.mark.parametrize("changed", [{"nic_model": "e1000"}, {"tpm": "2.0"}, {"disk_cache": "none"}, {"firmware": "x"}])
def test_what_the_guest_has_is_compared(changed: dict[str, Any]) -> None:
    """The name of a firmware alone is none of it: whether there is one says what is found on the node."""
    assert (make_spec(changed).hardware == make_spec().hardware) == (changed == {"firmware": "x"})


@pytest.mark.parametrize(("protocol", "words"), [("vnc", "-vnc unix:{}"), ("spice", "-spice unix=on,addr={},")])
@pytest.mark.parametrize(("machine", "bus"), [("q35,smm=on", "pcie.0"), ("pc-i440fx-7.2", "pci.0")])
def test_screens(protocol: str, words: str, machine: str, bus: str) -> None:
    spec = make_spec({"machine_type": machine, "remote_display": protocol}, display="/run/a,b/display.sock")
    said = " ".join(qemu_argv(spec))
    assert f"-device VGA,bus={bus},addr=0x2,id=screen0,vgamem_mb=8 " in said
    assert words.format("/run/a,,b/display.sock") in said
    assert "VGA" not in " ".join(qemu_argv(make_spec({"machine_type": machine}, display="/run/display.sock")))


def test_a_microvm_has_no_screen() -> None:
    with pytest.raises(GuestError, match="a microvm has no screen"):
        make_spec({"machine_type": "microvm", "remote_display": "vnc"})
