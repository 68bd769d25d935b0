"""Command lines of ssh and scp."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pvc.errors import GuestError, UsageError
from pvc.model.vm import Phase
from pvc.ops.jobdir import JobDir
from pvc.ops.ssh import SshTarget, find_target, parse_scp_line, parse_ssh_line, scp_argv, split_place, ssh_argv
from tests.unit.ops.worlds import make_status

JOBDIR = JobDir(Path("/home/me/.pvc/jobs/7"))
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
    argv = ssh_argv(parse_ssh_line(["-o", "StrictHostKeyChecking=no", "vm3", "ls", "-l"]), TARGET, JOBDIR)
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
    argv = scp_argv(options, places, targets, JOBDIR)
    assert argv[:4] == ["scp", "-r", "-l", "9"]
    assert argv[-4:] == ["--", "a", "scp://root@10.0.0.1:60003/b", "scp://anne@10.0.0.2:60000//tmp/"]


def test_scp_needs_two_places() -> None:
    with pytest.raises(UsageError):
        parse_scp_line(["-r", "x"])


def test_a_vm_without_a_port_for_ssh() -> None:
    with pytest.raises(GuestError, match="no port leads to the ssh of vm1"):
        find_target(make_status(1, Phase.BOOTING, port=None), tuple)


def test_a_port_of_the_owners_is_reached_through_the_supervisor(tmp_path: Path) -> None:
    status = replace(make_status(1, Phase.REACHABLE), ssh_by_owner=True)
    target = find_target(status, lambda: ("/opt/my pvc/100%/pvc", "carry", "12"))
    argv = ssh_argv(parse_ssh_line(["vm1"]), target, JobDir(tmp_path))
    assert "ProxyCommand='/opt/my pvc/100%%/pvc' carry 12 %h %p" in argv
    assert find_target(make_status(1, Phase.REACHABLE), tuple).through == ()
    both = {"vm0": SshTarget("vm0", "127.0.0.1", 60001), "vm1": target}
    assert any(word.startswith("ProxyCommand=") for word in scp_argv([], ["vm0:a", "vm1:b"], both, JobDir(tmp_path)))
