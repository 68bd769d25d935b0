"""Command lines of ssh and scp."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from pvc.errors import UsageError
from pvc.model.vm import Phase, VmStatus
from pvc.ops.jobdir import JobDir
from pvc.ops.ssh import (
    SshTarget,
    find_target,
    parse_scp_line,
    parse_ssh_line,
    scp_argv,
    split_place,
    ssh_argv,
    write_config,
)
from tests.unit.ops.worlds import make_record, make_status

JOBDIR = JobDir(Path("/home/me/.pvc/jobs/7"))
CARRIER = ("/opt/my pvc/100%/pvc", "carry", "12")
TARGET = SshTarget("vm3", "10.0.0.1", 60003)


@pytest.mark.parametrize(
    ("line", "options", "user", "vm", "command"),
    [
        ("vm0", "", None, "vm0", ""),
        ("-v -L 80:localhost:80 anne@vm3 uptime -p", "-v -L 80:localhost:80", "anne", "vm3", "uptime -p"),
        ("-tt -oX=y -o X=y vm1", "-tt -oX=y -o X=y", None, "vm1", ""),
        ("-vL 80:x:80 vm1", "-vL 80:x:80", None, "vm1", ""),
        ("-v -- vm1 -x", "-v", None, "vm1", "-x"),
        ("vm1 -- ls -- -x", "", None, "vm1", "ls -- -x"),
    ],
)
def test_ssh_line(line: str, options: str, user: str | None, vm: str, command: str) -> None:
    parsed = parse_ssh_line(line.split())
    assert (parsed.options, parsed.user, parsed.vm, parsed.command) == (
        tuple(options.split()),
        user,
        vm,
        tuple(command.split()),
    )


@pytest.mark.parametrize("line", ["", "-v", "@vm0"])
def test_no_vm(line: str) -> None:
    with pytest.raises(UsageError):
        parse_ssh_line(line.split())


def test_ssh_argv_puts_the_users_options_first() -> None:
    argv = ssh_argv(parse_ssh_line(["-o", "StrictHostKeyChecking=no", "vm3", "ls", "-l"]), TARGET, JOBDIR, CARRIER)
    assert argv[:3] == ["ssh", "-o", "StrictHostKeyChecking=no"]
    assert argv[-8:] == ["-p", "60003", "-l", "root", "--", "10.0.0.1", "ls", "-l"]
    assert "HostKeyAlias=vm3" in argv
    assert "UserKnownHostsFile=/home/me/.pvc/jobs/7/known_hosts" in argv
    assert "IdentityFile=/home/me/.pvc/jobs/7/id_ed25519" in argv


def test_places() -> None:
    assert split_place("vm0:/etc/x") == (None, "vm0", "/etc/x")
    assert split_place("anne@vm0:") == ("anne", "vm0", "")
    assert split_place("./vm0:x") is None
    assert split_place("file") is None


def test_scp_argv() -> None:
    options, places = parse_scp_line(["-r", "-l", "9", "a", "vm3:b", "anne@vm4:/tmp/"])
    targets = {"vm3": TARGET, "vm4": SshTarget("vm4", "10.0.0.2", 60000)}
    argv = scp_argv(options, places, targets, JOBDIR, CARRIER)
    assert argv[:4] == ["scp", "-r", "-l", "9"]
    assert argv[-4:] == ["--", "a", "scp://root@10.0.0.1:60003/b", "scp://anne@10.0.0.2:60000//tmp/"]


def test_scp_needs_two_places() -> None:
    with pytest.raises(UsageError):
        parse_scp_line(["-r", "x"])


@pytest.mark.parametrize(
    "status",
    [make_status(1, Phase.BOOTING, port=None), replace(make_status(1, Phase.REACHABLE), ssh_by_owner=True)],
)
def test_a_port_that_is_not_to_be_reached_from_here(status: VmStatus, tmp_path: Path) -> None:
    argv = ssh_argv(parse_ssh_line(["vm1"]), find_target(status), JobDir(tmp_path), CARRIER)
    assert "ProxyCommand='/opt/my pvc/100%%/pvc' carry 12 %h" in argv
    assert argv[-2:] == ["--", "vm1"]
    both = {"vm0": SshTarget("vm0", "127.0.0.1", 60001), "vm1": find_target(status)}
    argv = scp_argv([], ["vm0:a", "anne@vm1:/b"], both, JobDir(tmp_path), CARRIER)
    assert any(word.startswith("ProxyCommand=") for word in argv)
    assert argv[-2:] == ["scp://root@vm0/a", "scp://anne@vm1//b"]


def test_settings_for_plain_ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "my home"))
    (tmp_path / "my home" / ".ssh").mkdir(parents=True)
    (tmp_path / "my home" / ".ssh" / "id_rsa").touch()
    assert write_config(make_record(), CARRIER).splitlines() == [
        "# Cluster 7 (web:2,db:1), by pvc ssh-config; it goes with the cluster.",
        "Host vm0 vm0.7 vm1 vm1.7 vm2 vm2.7",
        "    User root",
        f'    UserKnownHostsFile "{tmp_path}/my home/.pvc/jobs/7/known_hosts"',
        "    GlobalKnownHostsFile /dev/null",
        "    StrictHostKeyChecking yes",
        "    CheckHostIP no",
        "    ConnectTimeout 20",
        "    ProxyCommand '/opt/my pvc/100%%/pvc' carry 12 %h",
        f'    IdentityFile "{tmp_path}/my home/.pvc/jobs/7/id_ed25519"',
        f'    IdentityFile "{tmp_path}/my home/.ssh/id_rsa"',
    ]


@pytest.mark.allow_run("ssh itself says how it reads the settings")
def test_ssh_reads_them_as_they_are_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "my home"
    monkeypatch.setenv("HOME", str(home))
    home.mkdir()
    path = home / "config"
    path.write_text(write_config(make_record(), CARRIER))
    text = subprocess.run(["ssh", "-F", path, "-G", "vm2.7"], capture_output=True, text=True, check=True).stdout
    assert f"userknownhostsfile {home}/.pvc/jobs/7/known_hosts\n" in text
    assert f"identityfile {home}/.pvc/jobs/7/id_ed25519\n" in text
    assert "user root\n" in text
