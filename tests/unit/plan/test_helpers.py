# SPDX-License-Identifier: Apache-2.0
"""Command lines of the programs beside QEMU."""

from __future__ import annotations

from typing import Any

import pytest

from pvc.errors import GuestError
from pvc.model.vm import Mount, VmTemplate
from pvc.plan.helpers import HelperPaths, ShareDaemon, plan_helpers

GUARD = ("/usr/bin/python3", "-I", "-S", "/opt/pvc/shareguard.py")
MOUNTS = (
    Mount("/home/anne", "/home", tag="home"),
    Mount("/scratch, new", "/scratch", tag="pvc1", type="virtiofs"),
    Mount("/sw", "/sw", True, "sw", "virtiofs"),
)


def plan(daemon: ShareDaemon | None, **template: Any) -> list[list[str]]:
    base = VmTemplate(**{"name": "t", "disk": None, "boot": None, "resource_set": "none"} | template)
    return [each.command(7) for each in plan_helpers(base, HelperPaths("/run/vm0/tpm", GUARD, daemon))]


def test_a_tpm_keeps_its_state_in_the_vms_directory() -> None:
    state = "dir=/run/vm0/tpm,mode=0600"
    assert plan(None, tpm="2.0") == [
        ["swtpm", "socket", "--tpm2", "--tpmstate", state, "--ctrl", "type=unixio,clientfd=7"]
    ]
    assert plan(None) == []


def test_a_daemon_for_each_directory_over_virtio_fs() -> None:
    first, second = plan(ShareDaemon("/usr/libexec/virtiofsd", separate=True), mounts=MOUNTS)
    begin = ["unshare", "--user", "--map-root-user", "--mount", "--net", "--ipc", "--", *GUARD]
    options = ["--shared-dir={dir}", "--sandbox=chroot", "--log-level=warn", "--rlimit-nofile=0"]
    assert first == [*begin, "rw", "/scratch, new", "--", "/usr/libexec/virtiofsd", *options, "--fd=7"]
    assert second == [*begin, "ro", "/sw", "--", "/usr/libexec/virtiofsd", *options, "--readonly", "--fd=7"]


def test_qemus_own_daemon_has_other_options() -> None:
    _, second = plan(ShareDaemon("/usr/lib/qemu/virtiofsd", separate=False), mounts=MOUNTS)
    # Read-only is the mount that the guard makes.
    assert second[second.index("ro") :] == [
        *("ro", "/sw", "--", "/usr/lib/qemu/virtiofsd"),
        *("-o", "source={dir},sandbox=chroot,log_level=warn", "--rlimit-nofile=0", "--fd=7"),
    ]


def test_a_node_without_a_daemon() -> None:
    with pytest.raises(GuestError, match="no virtiofsd, which /scratch needs") as caught:
        plan(None, mounts=MOUNTS)
    assert "type 9p" in str(caught.value.hint)
    assert plan(None, mounts=MOUNTS[:1]) == []
