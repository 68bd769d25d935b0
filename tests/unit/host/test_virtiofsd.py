# SPDX-License-Identifier: Apache-2.0
"""Descriptors of daemons for file systems: which is taken, and what is not believed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pvc.host import virtiofsd
from pvc.host.virtiofsd import find_virtiofsd
from pvc.plan.helpers import ShareDaemon


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The distribution's, with two daemons beside."""
    for name in ("old", "new"):
        (tmp_path / name).touch(mode=0o755)
    (tmp_path / "text").touch(mode=0o644)
    found = tmp_path / "vhost-user"
    found.mkdir()
    monkeypatch.setattr(virtiofsd, "SYSTEM_DIRS", (found,))
    return found


def describe(path: Path, **changes: Any) -> str:
    return json.dumps({"description": "virtiofsd", "type": "fs", "binary": str(path)} | changes)


def test_the_first_that_can_be_run(tmp_path: Path, directory: Path) -> None:
    assert find_virtiofsd(tmp_path) is None
    for number, text in enumerate(("{", "[]", "7", '{"type": "fs"}', '{"type": "fs", "binary": ["x"]}', "null")):
        (directory / f"1{number}-bad.json").write_text(text)
    (directory / "20-gpu.json").write_text(describe(tmp_path / "old", type="gpu"))
    (directory / "21-relative.json").write_text(describe(Path("bin/sh")))
    (directory / "22-gone.json").write_text(describe(tmp_path / "gone"))
    (directory / "23-not-a-program.json").write_text(describe(tmp_path / "text"))
    (directory / "50-qemu-virtiofsd.json").write_text(describe(tmp_path / "old"))
    assert find_virtiofsd(tmp_path) == ShareDaemon(str(tmp_path / "old"), separate=False)
    features = ["migrate-precopy", "separate-options"]
    (directory / "40-virtiofsd.json").write_text(describe(tmp_path / "new", features=features))
    assert find_virtiofsd(tmp_path) == ShareDaemon(str(tmp_path / "new"), separate=True)


def test_the_users_own_hides_the_nodes(tmp_path: Path, directory: Path) -> None:
    (directory / "50-virtiofsd.json").write_text(describe(tmp_path / "old"))
    own = tmp_path / ".config/qemu/vhost-user"
    own.mkdir(parents=True)
    (own / "50-virtiofsd.json").write_text(describe(tmp_path / "new"))
    assert find_virtiofsd(tmp_path) == ShareDaemon(str(tmp_path / "new"), separate=False)
    (own / "50-virtiofsd.json").write_text("")
    assert find_virtiofsd(tmp_path) is None
