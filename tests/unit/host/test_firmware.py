# SPDX-License-Identifier: Apache-2.0
"""Descriptors of UEFI firmware: which one is taken, which one hides which, and what is not believed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pvc.errors import GuestError
from pvc.host import firmware
from pvc.host.firmware import find_firmware


@pytest.fixture
def dirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The user's directory and the distribution's; the files of firmware are in ``tmp_path``."""
    user, system = tmp_path / ".config/qemu/firmware", tmp_path / "usr"
    user.mkdir(parents=True)
    system.mkdir()
    monkeypatch.setattr(firmware, "SYSTEM_DIRS", (system,))
    for name in ("plain", "secure", "variables"):
        (tmp_path / name).touch()
    return user, system


def describe(tmp_path: Path, code: str, *features: str, **changes: Any) -> str:
    entry = {"filename": str(tmp_path / code), "format": "raw"}
    found = {
        "interface-types": ["uefi"],
        "mapping": {
            "device": "flash",
            "executable": entry,
            "nvram-template": entry | {"filename": str(tmp_path / "variables")},
        },
        "targets": [{"architecture": "x86_64", "machines": ["pc-i440fx-*", "pc-q35-*"]}],
        "features": list(features),
    }
    return json.dumps(found | changes)


def test_the_first_that_fits_is_taken(tmp_path: Path, dirs: tuple[Path, Path]) -> None:
    system = dirs[1]
    (system / "10-arm.json").write_text(
        describe(tmp_path, "plain", targets=[{"architecture": "aarch64", "machines": ["virt-*"]}])
    )
    (system / "20-gone.json").write_text(describe(tmp_path, "gone"))
    (system / "40-secure.json").write_text(
        describe(tmp_path, "secure", "secure-boot", "enrolled-keys", "requires-smm", targets=[
            {"architecture": "x86_64", "machines": ["pc-q35-*"]}])
    )  # fmt: skip
    (system / "50-open.json").write_text(describe(tmp_path, "secure", "secure-boot", "requires-smm"))
    (system / "60-plain.json").write_text(describe(tmp_path, "plain"))
    for machine in ("q35", "pc", "q35,kernel-irqchip=off", "pc-q35-7.2"):
        found = find_firmware(machine, secure=False, home=tmp_path)
        assert (found.code, found.variables, found.smm) == (str(tmp_path / "plain"), str(tmp_path / "variables"), False)
    secure = find_firmware("q35", secure=True, home=tmp_path)
    assert (secure.code, secure.smm) == (str(tmp_path / "secure"), True)
    with pytest.raises(GuestError, match="no UEFI firmware with Secure Boot for machine pc"):
        find_firmware("pc", secure=True, home=tmp_path)


def test_a_users_file_hides_the_systems(tmp_path: Path, dirs: tuple[Path, Path]) -> None:
    user, system = dirs
    (system / "60.json").write_text(describe(tmp_path, "plain"))
    (user / "60.json").write_text(describe(tmp_path, "secure"))
    assert find_firmware("q35", secure=False, home=tmp_path).code == str(tmp_path / "secure")
    (user / "60.json").write_text("")
    with pytest.raises(GuestError, match="no UEFI firmware for machine q35") as caught:
        find_firmware("q35", secure=False, home=tmp_path)
    assert "ovmf" in (caught.value.hint or "")


@pytest.mark.parametrize(
    "text", ["[" * 5000, "{", "[]", "7", '{"features": 1}', '{"features": [], "mapping": []}', '"x"', "\ud800"]
)
def test_what_is_no_descriptor_is_left_out(tmp_path: Path, dirs: tuple[Path, Path], text: str) -> None:
    (dirs[1] / "10.json").write_bytes(text.encode(errors="surrogatepass"))
    (dirs[1] / "60.json").write_text(describe(tmp_path, "plain"))
    assert find_firmware("q35", secure=False, home=tmp_path).code == str(tmp_path / "plain")


def test_names_that_are_no_text(tmp_path: Path, dirs: tuple[Path, Path]) -> None:
    wrong = {"filename": 3, "format": "raw"}
    mapping = {"device": "flash", "executable": wrong, "nvram-template": wrong}
    (dirs[1] / "60.json").write_text(describe(tmp_path, "plain", mapping=mapping))
    with pytest.raises(GuestError):
        find_firmware("q35", secure=False, home=tmp_path)
