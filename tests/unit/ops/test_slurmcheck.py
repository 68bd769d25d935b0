# SPDX-License-Identifier: Apache-2.0
"""What pvc doctor says of Slurm's configuration on a node."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pvc import __version__
from pvc.errors import JobError
from pvc.ops.slurmcheck import check_plugin, check_srun_ports
from tests.unit.plan.worlds import NAT

THIS = f"pvc plug-in of {__version__};".encode()


def check(tmp_path: Path, plugstack: str) -> list[tuple[str, str]]:
    (tmp_path / "plugstack.conf").write_text(plugstack)
    settings = {"PlugStackConfig": str(tmp_path / "plugstack.conf"), "PluginDir": f"/nosuch:{tmp_path}"}
    return [(found.verdict.value, found.text) for found in check_plugin(settings)]


def test_the_plugin_is_of_this_pvc(tmp_path: Path) -> None:
    (tmp_path / "pvc.so").write_bytes(b"\x7fELF\0" + THIS + b"\0")
    (tmp_path / "more.d").mkdir()
    (tmp_path / "more.d" / "pvc.conf").write_text(f"# ours\nrequired {tmp_path}/pvc.so pvc=/opt/pvc\n")
    for text in (
        "required pvc.so x=1",
        f"optional {tmp_path}/pvc.so",
        "include more.d/*.conf",
        "include more.d/*\n" * 9,
    ):
        assert check(tmp_path, text) == [("ok", f"{tmp_path}/pvc.so is of pvc {__version__}")]


def test_another_one_is_told(tmp_path: Path) -> None:
    (tmp_path / "pvc.so").write_bytes(THIS.replace(__version__.encode(), b"0.0.7"))
    assert check(tmp_path, "required pvc.so") == [
        ("fail", f"{tmp_path}/pvc.so is of pvc 0.0.7, and this is {__version__}")
    ]
    (tmp_path / "pvc.so").write_bytes(b"from before there was a mark")
    assert check(tmp_path, "required pvc.so") == [
        ("fail", f"{tmp_path}/pvc.so is of an older version, and this is {__version__}")
    ]
    assert check(tmp_path, "# required pvc.so\nrequired other.so")[0][1].endswith("plugstack.conf names no pvc.so")
    assert check(tmp_path, f"include {tmp_path}/plugstack.conf")[0][0] == "fail"  # itself, not for ever
    (tmp_path / "pvc.so").unlink()
    with pytest.raises(JobError, match=r"pvc.so cannot be read: No such file"):
        check(tmp_path, "required pvc.so")


@pytest.mark.parametrize(("said", "told"), [("0-0", ""), ("", ""), ("39900-39999", ""), ("60200-64000", "60200 to")])
def test_ports_of_srun(said: str, told: str) -> None:
    entry = replace(NAT.reverse_nat[0], min_host_port=60000, max_host_port=60500)
    found = list(check_srun_ports([replace(NAT, reverse_nat=(entry,))], {"SrunPortRange": said}))
    assert [(each.verdict.value, each.check) for each in found] == ([("fail", "ports")] if told else [])
    assert all(f"ports {told} 60500 of its reverse-nat" in each.text for each in found)
