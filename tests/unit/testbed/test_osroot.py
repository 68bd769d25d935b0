# SPDX-License-Identifier: Apache-2.0
"""Roots of other releases: what goes into one follows from the project's own lists."""

from __future__ import annotations

from pathlib import Path

import pytest

from pvc.errors import UsageError
from pvc.testbed import osroot

TOP = Path(__file__).resolve().parents[3]


def test_a_root_has_what_nodes_need_and_nothing_to_build_with() -> None:
    packages = osroot.find_packages((TOP / "conf" / "debian-packages.txt").read_text())
    assert {"slurmd", "slurmctld", "etcd-server", "openvswitch-switch", "qemu-system-x86", "libslurm-dev"} <= set(
        packages
    )
    assert not {"gcc", "make", "clang", "musl-tools", "python3-dev", "mmdebstrap", "zsh"} & set(packages)
    assert list(packages) == sorted(packages)


def test_the_environment_has_what_setup_cfg_asks_for() -> None:
    dependencies = osroot.find_dependencies((TOP / "setup.cfg").read_text())
    assert "click>=8.2" in dependencies
    assert all(" " not in each and not each.startswith("#") for each in dependencies)


@pytest.mark.parametrize("name", ["../etc", "Trixie", "trixie/updates", "-o"])
def test_only_code_names_are_releases(name: str) -> None:
    with pytest.raises(UsageError, match="is no Debian release"):
        osroot.ensure_root(name, lambda _text: None)
