# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
from pathlib import Path

from pycdlib import PyCdlib

from pvc.host.seed import LABEL, seed_image, write_seed

FILES = {"meta-data": "{}\n", "user-data": "#cloud-config\n" + "x" * 100_000, "network-config": "", "vendor-data": "ü"}


def test_files_come_back_under_their_names() -> None:
    iso = PyCdlib()
    iso.open_fp(io.BytesIO(seed_image(FILES)))
    try:
        assert iso.pvd.volume_identifier.decode().rstrip() == LABEL
        found = {}
        for entry in iso.list_children(rr_path="/"):
            if entry.is_dir():
                continue
            data = io.BytesIO()
            iso.get_file_from_iso_fp(data, rr_path=f"/{entry.rock_ridge.name().decode()}")
            found[entry.rock_ridge.name().decode()] = data.getvalue().decode()
    finally:
        iso.close()
    assert found == FILES


def test_only_the_owner_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "seed.iso"
    write_seed(path, FILES)
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(path.read_bytes()) % 2048 == 0
