# SPDX-License-Identifier: Apache-2.0
"""The schema of a cloud-init on this machine: a program stands for it that judges as 22.4 does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pvc import run
from pvc.model.vm import VmTemplate
from pvc.ops.userdata import find_schema_fault, warn_of_schema

CLOUD_INIT = """#!/bin/sh
[ "$1 $2" = "schema --config-file" ] || exit 9
grep -q runcmd "$3" || { echo "Valid cloud-config: $3"; exit; }
printf 'Error:\\nCloud config schema errors: runcmd: 5 is not of type array\\n' >&2
exit 1
"""


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory of programs, before the others."""
    find_schema_fault.cache_clear()
    found = f"{tmp_path}:{run.PATH}"
    monkeypatch.setattr(run, "PATH", found)
    monkeypatch.setattr(run, "BASE_ENV", {**run.BASE_ENV, "PATH": found})
    yield tmp_path
    find_schema_fault.cache_clear()


def make(name: str, text: str | None) -> VmTemplate:
    return VmTemplate(name, None, None, "nat", user_data=text)


@pytest.mark.allow_run("the program")
def test_what_the_schema_says_is_told_once(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (path / "cloud-init").write_text(CLOUD_INIT)
    (path / "cloud-init").chmod(0o755)
    wrong, right = "#cloud-config\nruncmd: 5\n", "#cloud-config\npackages: [vim]\n"
    warn_of_schema(
        [make("a", wrong), make("b", right), make("c", wrong), make("d", None), make("e", "#!/bin/runcmd\n")]
    )
    (record,) = caplog.records
    assert record.getMessage() == (
        "user-data of a, c: cloud-init's schema here says: "
        "Error: Cloud config schema errors: runcmd: 5 is not of type array"
    )


def test_without_cloud_init_nothing_is_said(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "PATH", str(path))
    assert find_schema_fault("#cloud-config\nruncmd: 5\n") is None
