# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvc import run
from pvc.host.overlay import write_overlay
from pvc.plan.disks import MAX_SIZE, plan_empty, plan_overlay

SIZES = [1 << 20, (1 << 20) + 1, 10 << 30, 512 << 20, (512 << 20) + 512, 2 << 40]


PATHS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=255)
IMPOSSIBLE = [("", 1), ("/" + "x" * 1023, 1), ("/b", 0), ("/b", -1), ("/b", MAX_SIZE + 1)]


@given(st.integers(1, MAX_SIZE), PATHS)
def test_extents_do_not_overlap_and_fit(size: int, path: str) -> None:
    overlay = plan_overlay(path, "qcow2", size)
    end = 0
    for extent in overlay.extents:
        assert extent.offset >= end
        end = extent.offset + len(extent.data)
    assert end <= overlay.length
    assert overlay.length % 65536 == 0


def test_the_same_inputs_give_the_same_bytes() -> None:
    assert plan_overlay("/b", "raw", 1 << 30) == plan_overlay("/b", "raw", 1 << 30)


@pytest.mark.allow_run
def test_qemu_reads_an_empty_disk_as_zeros(tmp_path: Path) -> None:
    if shutil.which("qemu-img", path=run.PATH) is None:
        pytest.skip("no qemu-img")
    for i, size in enumerate(SIZES):
        path = tmp_path / str(i)
        write_overlay(path, plan_empty(size))
        found = json.loads(run.run(["qemu-img", "info", "--output=json", path]))
        assert found["virtual-size"] == -(-size // 512) * 512
        assert "backing-filename" not in found
        run.run(["qemu-img", "check", "-q", path])


@pytest.mark.parametrize(("path", "size"), IMPOSSIBLE)
def test_impossible_overlays(path: str, size: int) -> None:
    with pytest.raises(ValueError, match=r"base image|disk of"):
        plan_overlay(path, "raw", size)


@pytest.mark.allow_run  # qemu-img is the judge of the format
@pytest.mark.parametrize("base_format", ["raw", "qcow2"])
def test_qemu_img_accepts(tmp_path: Path, base_format: str) -> None:
    if shutil.which("qemu-img") is None:
        pytest.fail("qemu-img is not installed (Debian: qemu-utils)")
    base = tmp_path / "base"
    run.run(["qemu-img", "create", "-q", "-f", base_format, base, "1M"])
    for size in SIZES:
        path = tmp_path / f"overlay-{size}"
        write_overlay(path, plan_overlay(str(base), base_format, size))
        info = json.loads(run.run(["qemu-img", "info", "--output=json", path]))
        assert info["virtual-size"] == -(-size // 512) * 512
        assert info["full-backing-filename"] == str(base)
        assert info["backing-filename-format"] == base_format
        check = json.loads(run.run(["qemu-img", "check", "--output=json", path]))
        assert check["check-errors"] == 0
        assert "leaks" not in check
        assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.allow_run  # qemu-io reads and writes through the overlay
def test_data_goes_through(tmp_path: Path) -> None:
    base, overlay = tmp_path / "base", tmp_path / "overlay"
    base.write_bytes(b"\x11" * (1 << 20))
    write_overlay(overlay, plan_overlay(str(base), "raw", 3 << 20))
    run.run(["qemu-io", "-f", "qcow2", "-c", "write -P 0x22 65536 4096", overlay])
    run.run(["qemu-io", "-f", "qcow2", "-c", "read -P 0x11 0 65536", "-c", "read -P 0x22 65536 4096", overlay])
    run.run(["qemu-io", "-f", "qcow2", "-c", "read -P 0x11 69632 978944", "-c", "read -P 0 1M 2M", overlay])
    assert base.read_bytes() == b"\x11" * (1 << 20)


def test_an_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        write_overlay(path, plan_overlay("/b", "raw", 1 << 20))
    assert path.read_bytes() == b"mine"
