# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import platform
from pathlib import Path

import pytest

from pvc.errors import GuestError
from pvc.host import kvm
from pvc.model.vm import Accel


@pytest.fixture
def machine(tmp_path: Path) -> dict[str, Path]:
    """A device that is a plain file, a CPU and a boot id: only a probe can tell that it is no KVM."""
    paths = {name: tmp_path / name for name in ("device", "cpuinfo", "boot_id")}
    paths["device"].touch()
    paths["cpuinfo"].write_text("processor: 0\nflags\t\t: fpu vmx sse\n")
    paths["boot_id"].write_text("1234\n")
    return paths


def write_cache(directory: Path, **changes: str) -> None:
    record = {"boot": "1234", "qemu": "qemu", "accel": "kvm", "reason": "cached"} | changes
    directory.mkdir(mode=0o700)
    (directory / f"kvm-{platform.node()}.json").write_text(json.dumps(record))


def test_no_device(machine: dict[str, Path]) -> None:
    machine["device"].unlink()
    facts = kvm.read_kvm("qemu", None, **machine)
    assert facts.accel is Accel.TCG
    assert facts.reason == f"there is no {machine['device']}"


def test_no_flag(machine: dict[str, Path]) -> None:
    machine["cpuinfo"].write_text("flags\t\t: fpu vmmcall\n")
    facts = kvm.read_kvm("qemu", None, **machine)
    assert facts.accel is Accel.TCG
    assert "neither vmx nor svm" in facts.reason


def test_a_cached_result_of_this_boot_is_used(machine: dict[str, Path], tmp_path: Path) -> None:
    write_cache(tmp_path / "cache")
    assert kvm.read_kvm("qemu", tmp_path / "cache", **machine) == kvm.AccelFacts(Accel.KVM, "cached")


@pytest.mark.allow_run  # the probe looks for a QEMU that is not there
@pytest.mark.parametrize("changes", [{"boot": "other"}, {"qemu": "other"}, {"accel": "magic"}])
def test_another_cache_is_not_used(machine: dict[str, Path], tmp_path: Path, changes: dict[str, str]) -> None:
    write_cache(tmp_path / "cache", **changes)
    facts = kvm.read_kvm("/nonexistent/qemu", tmp_path / "cache", **machine)
    assert facts.accel is Accel.TCG
    assert "/nonexistent/qemu not found" in facts.reason


@pytest.mark.allow_run  # the probe looks for a QEMU that is not there
def test_a_broken_cache_is_replaced(machine: dict[str, Path], tmp_path: Path) -> None:
    write_cache(tmp_path / "cache")
    cache = next((tmp_path / "cache").iterdir())
    cache.write_text("{")
    first = kvm.read_kvm("/nonexistent/qemu", tmp_path / "cache", **machine)
    assert json.loads(cache.read_text())["reason"] == first.reason
    assert cache.stat().st_mode & 0o777 == 0o600


def test_tcg_on_demand_probes_nothing() -> None:
    assert kvm.decide_accel(Accel.TCG, "/nonexistent/qemu", None).accel is Accel.TCG


@pytest.mark.allow_run  # on a machine with KVM, the probe looks for a QEMU that is not there
def test_kvm_demanded_and_missing() -> None:
    with pytest.raises(GuestError, match="KVM is demanded") as caught:
        kvm.decide_accel(Accel.KVM, "/nonexistent/qemu", None)
    assert "accel: auto" in (caught.value.hint or "")


def test_the_firmware_starts_at_the_reset_vector() -> None:
    rom = kvm.probe_firmware()
    assert len(rom) == 65536
    assert rom[0xFFF0] == 0xE9
    target = 0xFFF0 + 3 + int.from_bytes(rom[0xFFF1:0xFFF3], "little", signed=True)
    assert rom[target] == 0xFA
