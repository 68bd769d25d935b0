# SPDX-License-Identifier: Apache-2.0
"""PCI devices to VMs and back, on a kernel's bus that lives in a directory."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest

from pvc.errors import HostError, JobError
from pvc.host import vfio
from pvc.host.vfio import VFIO, bind, read_device, release
from pvc.model.host import PciDevice
from pvc.node import apply
from pvc.plan import actions
from pvc.state.memory import MemoryStore
from tests.unit.host.pci_kernel import Kernel

GPU, AUDIO, NIC = "0000:3b:00.0", "0000:3b:00.1", "0000:5e:00.0"
UID, GID = os.getuid(), os.getgid()


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    made = Kernel(tmp_path)
    for driver in ("nouveau", "snd_hda_intel", "mlx5_core", VFIO):
        made.add_driver(driver)
    made.add_device(GPU, group=12, driver="nouveau")
    made.add_device(AUDIO, group=12, driver="snd_hda_intel")
    made.add_device(NIC, group=None, driver="mlx5_core")
    return made


def test_what_the_kernel_says_of_a_device(kernel: Kernel) -> None:
    bus = kernel.bus()
    assert read_device(GPU, bus) == PciDevice("nouveau", 12, ((AUDIO, "snd_hda_intel"),))
    assert read_device(NIC, bus) == PciDevice("mlx5_core", None)
    assert read_device("0000:00:1f.7", bus) is None


def test_a_device_goes_to_vfio_and_back_to_its_driver(kernel: Kernel) -> None:
    bus = kernel.bus()
    bind(GPU, 12, UID, GID, bus)
    assert kernel.driver(GPU) == VFIO
    assert kernel.override(GPU) == VFIO
    node = (kernel.nodes / "12").stat()
    assert (node.st_uid, node.st_gid, node.st_mode & 0o777) == (UID, GID, 0o600)
    assert kernel.written == [
        f"devices/{GPU}/driver_override {VFIO}",
        f"drivers/nouveau/unbind {GPU}",
        f"drivers_probe {GPU}",
    ]
    release(GPU, 12, "nouveau", bus)
    assert kernel.driver(GPU) == "nouveau"
    assert kernel.override(GPU) == "(null)"
    assert not (kernel.nodes / "12").exists()
    assert kernel.driver(AUDIO) == "snd_hda_intel"


def test_twice_is_once(kernel: Kernel) -> None:
    bus = kernel.bus()
    for _ in range(2):
        bind(GPU, 12, UID, GID, bus)
    for _ in range(2):
        release(GPU, 12, "nouveau", bus)
    assert kernel.driver(GPU) == "nouveau"


def test_a_bind_that_was_cut_short_is_undone(kernel: Kernel) -> None:
    bus = kernel.bus()
    bus.write(kernel.pci / "devices" / GPU / "driver_override", VFIO)
    release(GPU, 12, "nouveau", bus)
    assert (kernel.driver(GPU), kernel.override(GPU)) == ("nouveau", "(null)")
    bus.write(kernel.pci / "devices" / GPU / "driver_override", VFIO)
    bus.write(kernel.pci / "drivers" / "nouveau" / "unbind", GPU)
    release(GPU, 12, "nouveau", bus)
    assert (kernel.driver(GPU), kernel.override(GPU)) == ("nouveau", "(null)")


def test_a_device_without_a_driver_is_taken_too(kernel: Kernel) -> None:
    kernel.add_device("0000:86:00.0", group=30, driver=None, known_by="mlx5_core")
    bind("0000:86:00.0", 30, UID, GID, kernel.bus())
    assert kernel.driver("0000:86:00.0") == VFIO


def test_a_kernel_without_vfio(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path)
    kernel.add_driver("nouveau")
    kernel.add_device(GPU, group=12, driver="nouveau")
    with pytest.raises(HostError, match="has no driver vfio-pci") as caught:
        bind(GPU, 12, UID, GID, kernel.bus())
    assert caught.value.hint == "modprobe vfio-pci"
    assert kernel.driver(GPU) == "nouveau"


def test_a_driver_that_was_unloaded_meanwhile_is_told(kernel: Kernel) -> None:
    bus = kernel.bus()
    bind(GPU, 12, UID, GID, bus)
    with pytest.raises(HostError, match=r"cannot bind 0000:3b:00\.0 to nvidia again") as caught:
        release(GPU, 12, "nvidia", bus)
    assert caught.value.hint == "modprobe nvidia"
    assert kernel.override(GPU) == "(null)"


def test_a_device_that_was_taken_out_is_given_back(kernel: Kernel) -> None:
    release("0000:00:1f.7", 3, "ahci", kernel.bus())
    assert kernel.written == []


def test_a_group_without_a_node_is_told(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vfio, "_NODE_S", 0.0)
    with pytest.raises(HostError, match=r"there is no .*/99"):
        bind(GPU, 99, UID, GID, kernel.bus())


def test_the_actions_undo_is_its_inverse(kernel: Kernel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(vfio, "Bus", kernel.bus)
    steps = [
        actions.BindDevice(GPU, 12, "nouveau", UID, GID),
        actions.BindDevice(AUDIO, 12, "snd_hda_intel", UID, GID),
    ]
    hands = apply.Hands(tmp_path / "host.json", tmp_path / "switch.json", tmp_path / "lock", MemoryStore)
    for step in steps:
        apply.create(step, hands)
    assert (kernel.driver(GPU), kernel.driver(AUDIO)) == (VFIO, VFIO)
    assert apply.undo(steps, hands) == ([], [])
    assert (kernel.driver(GPU), kernel.driver(AUDIO)) == ("nouveau", "snd_hda_intel")
    assert not (kernel.nodes / "12").exists()


def test_a_device_that_a_users_process_keeps_is_taken_back_later(kernel: Kernel) -> None:
    """The kernel would wait for that process; a tear-down does not, and it is no fault of the node."""
    bus = kernel.bus()
    bind(GPU, 12, UID, GID, bus)
    written = len(kernel.written)

    def busy(path: Path) -> int:
        assert path == kernel.nodes / "12"
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    with pytest.raises(JobError, match="still held by a process"):
        release(GPU, 12, "nouveau", replace(bus, open=busy))
    assert kernel.written[written:] == []
    assert kernel.driver(GPU) == VFIO
    release(GPU, 12, "nouveau", bus)
    assert kernel.driver(GPU) == "nouveau"
