# SPDX-License-Identifier: Apache-2.0
"""Command lines of ssh and scp."""

from __future__ import annotations

import os
import re
import subprocess
import urllib.parse
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given

from pvc.errors import UsageError
from pvc.files import write_atomic
from pvc.model.vm import Phase, VmStatus
from pvc.ops import ssh
from pvc.ops.jobdir import JobDir
from pvc.ops.ssh import (
    SshTarget,
    find_overrides,
    find_target,
    parse_scp_line,
    parse_ssh_line,
    scp_argv,
    split_place,
    ssh_argv,
    write_config,
)
from tests.unit import filenames
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
    assert argv[:5] == ["ssh", "-o", "StrictHostKeyChecking=no", "-F", "none"]
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
    first, host, user, *settings = write_config(make_record(), CARRIER).splitlines()
    assert first == "# Cluster 7 (web:2,db:1), by pvc ssh-config; it goes with the cluster."
    assert (host, user) == ("Host vm0 vm0.7 vm1 vm1.7 vm2 vm2.7", "    User root")
    assert f'    UserKnownHostsFile "{tmp_path}/my home/.pvc/jobs/7/known_hosts"' in settings
    assert "    ProxyCommand '/opt/my pvc/100%%/pvc' carry 12 %h" in settings
    assert settings[-2:] == [
        f'    IdentityFile "{tmp_path}/my home/.pvc/jobs/7/id_ed25519"',
        f'    IdentityFile "{tmp_path}/my home/.ssh/id_rsa"',
    ]


@pytest.mark.allow_run("ssh itself reads it")
def test_a_home_whose_name_is_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / os.fsdecode(b"J\xf6rg")
    (home / ".pvc" / "jobs" / "7").mkdir(parents=True)
    monkeypatch.setenv("HOME", os.fspath(home))
    config = tmp_path / "ssh_config"
    write_atomic(config, write_config(make_record(), CARRIER))
    argv = ["ssh", "-F", os.fspath(config), "-G", "vm0.7"]
    said = subprocess.run(argv, check=True, capture_output=True).stdout
    assert os.fsencode(f"userknownhostsfile {home}/.pvc/jobs/7/known_hosts\n") in said


# What people and sites have under "Host *"
HOSTILE = """
RemoteCommand tmux attach
RequestTTY force
HostKeyAlgorithms ssh-rsa
PubkeyAcceptedAlgorithms ssh-rsa
PubkeyAuthentication no
PreferredAuthentications password
ControlMaster auto
ControlPath /tmp/%C
ControlPersist 10m
ProxyCommand nc -x proxy %h %p
ProxyJump bastion
ProxyUseFdpass yes
HostName gateway
Port 2222
User nobody
HostKeyAlias other
CanonicalizeHostname always
LogLevel QUIET
IdentitiesOnly no
AddKeysToAgent yes
StrictHostKeyChecking no
UserKnownHostsFile /dev/null
GlobalKnownHostsFile /etc/hosts
VerifyHostKeyDNS yes
UpdateHostKeys yes
PermitLocalCommand yes
LocalCommand false
ExitOnForwardFailure yes
ConnectTimeout 1
CheckHostIP yes
HostbasedAuthentication yes
NoHostAuthenticationForLocalhost yes
"""


def ask_ssh(*words: str | Path) -> dict[str, str]:
    text = subprocess.run(["ssh", *words], capture_output=True, text=True, check=True).stdout
    return dict(line.split(" ", 1) for line in text.splitlines() if " " in line)


@pytest.mark.allow_run("ssh itself says how it reads the settings")
@pytest.mark.parametrize("line", [*HOSTILE.strip().splitlines(), HOSTILE], ids=lambda text: text.split()[0])
def test_nothing_under_host_star_decides(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    ours, config = tmp_path / "ssh_config", tmp_path / "config"
    ours.write_text(write_config(make_record(), CARRIER))
    config.write_text(f"Include {ours}\nHost *\n{line}\n")
    meant = ask_ssh("-F", ours, "-G", "vm2.7")
    found = ask_ssh("-F", config, "-G", "vm2.7")
    found.pop("localcommand", None)  # permitted to nobody
    assert found == meant
    # and of a connection that pvc makes itself, no word of the user's own file
    argv = ssh_argv(parse_ssh_line(["vm2"]), SshTarget("vm2"), JOBDIR, CARRIER)
    assert argv[1:3] == ["-F", "none"]
    alone = ask_ssh(*argv[1:-2], "-G", *argv[-2:])
    assert alone["hostname"] == "vm2"
    assert (alone["controlmaster"], alone["loglevel"], alone["identitiesonly"]) == ("false", "INFO", "yes")


@pytest.mark.allow_run("ssh itself says how it reads the settings")
def test_keys_in_hardware_are_taken_without_names_that_older_ssh_ends_at(tmp_path: Path) -> None:
    config = tmp_path / "ssh_config"
    config.write_text(write_config(make_record(), CARRIER))
    assert "sk-" not in config.read_text()
    found = ask_ssh("-F", config, "-G", "vm2.7")
    accepted = found["pubkeyacceptedalgorithms"].split(",")
    assert {"sk-ssh-ed25519@openssh.com", "sk-ecdsa-sha2-nistp256@openssh.com", "rsa-sha2-512"} <= set(accepted)
    assert "ssh-rsa" not in accepted
    assert found["hostkeyalgorithms"].startswith("ssh-ed25519,ecdsa-")


@pytest.mark.allow_run("ssh itself says how it reads the settings")
def test_what_stands_before_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    ours, config = tmp_path / "ssh_config", tmp_path / "config"
    ours.write_text(write_config(make_record(), CARRIER))
    words: list[str] = []
    monkeypatch.setattr(ssh, "_read_settings", lambda given: ask_ssh(*([*words] if "-F" not in given else []), *given))
    words[:] = ["-F", str(config)]
    config.write_text("Host *\n ControlMaster auto\n RemoteCommand x\n")
    assert find_overrides(make_record(), ours) is None
    config.write_text(f"Host *\n ControlMaster auto\n RemoteCommand x\nHost *\n Include {ours}\n")
    assert find_overrides(make_record(), ours) == ["controlmaster", "remotecommand"]
    config.write_text(f"Include {ours}\nHost *\n ControlMaster auto\n RemoteCommand x\n")
    assert find_overrides(make_record(), ours) == []


@pytest.mark.parametrize(
    ("line", "own"), [("-F mine vm1", True), ("-vFmine vm1", True), ("-l F vm1", False), ("-v vm1", False)]
)
def test_a_configuration_that_is_named_is_used(line: str, own: bool) -> None:
    argv = ssh_argv(parse_ssh_line(line.split()), TARGET, JOBDIR, CARRIER)
    assert ("none" in argv[: argv.index("-o")]) is not own


def test_the_users_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few enough for a server's patience; of those whose private half an agent has, the public one is enough."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    for number in range(8):
        (tmp_path / ".ssh" / f"key{number}.pub").touch()
    (tmp_path / ".ssh" / "id_rsa").touch()
    argv = ssh_argv(parse_ssh_line(["vm1"]), TARGET, JOBDIR, CARRIER)
    files = [word.removeprefix("IdentityFile=") for word in argv if word.startswith("IdentityFile=")]
    own = [str(tmp_path / ".ssh" / name) for name in ("id_rsa", "key0", "key1", "key2", "key3")]
    assert files == [str(JOBDIR.identity), *own]
    assert "IdentitiesOnly=yes" in argv


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


_FAKE_SSH = """#!/bin/sh
for word; do last=$word; done
printf %s "$last" > "$ASKED"
exec scp -t -- "$TARGET"
"""


@pytest.mark.allow_run("scp itself, the older protocol of which tells the path as it has understood it")
def test_scp_takes_every_name(tmp_path: Path) -> None:
    names = [name for name in filenames.SEEN if "\n" not in name]  # which this protocol ends a name with
    fake, asked = tmp_path / "ssh", tmp_path / "asked"
    for place in ("from", "to"):
        (tmp_path / place).mkdir()
    fake.write_text(_FAKE_SSH)
    fake.chmod(0o755)
    for name in names:
        (tmp_path / "from" / name).write_text("x")
    here = [f"./{name}" if split_place(name) else name for name in names]
    path = "/tmp/" + "".join(sorted(set("".join(names)) - {"/"}))
    argv = scp_argv(["-q", "-O", "-S", str(fake)], [*here, f"vm0:{path}"], {"vm0": SshTarget("vm0")}, JOBDIR, ["x"])
    environment = {"PATH": os.environ["PATH"], "ASKED": str(asked), "TARGET": str(tmp_path / "to")}
    done = subprocess.run(argv, cwd=tmp_path / "from", env=environment, capture_output=True, timeout=60, check=False)
    assert asked.read_bytes() == b"scp -d -t " + os.fsencode(path), done.stderr
    assert sorted(os.listdir(tmp_path / "to")) == sorted(names), done.stderr


@pytest.mark.allow_run("ssh itself")
def test_a_home_of_every_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be in a file of ssh's: the end of a line, and what it takes for a variable."""
    names = [name for name in filenames.SEEN if not {"\n", "${"} & {*name, name[:2]}]
    keys = [Path("/home") / name / "key" for name in names]
    monkeypatch.setattr(ssh, "_own_keys", lambda: keys)
    argv = ssh_argv(parse_ssh_line(["-G", "vm0"]), SshTarget("vm0"), JOBDIR, CARRIER)
    told = subprocess.run(argv, capture_output=True, timeout=60, check=True, env={"HOME": str(tmp_path)}).stdout
    found = [line.removeprefix(b"identityfile ") for line in told.split(b"\n") if line.startswith(b"identityfile ")]
    assert found[1:] == [os.fsencode(key).replace(b"%", b"%%") for key in keys]


@given(filenames.NAMES)
def test_what_scp_is_told_is_the_name(name: str) -> None:
    argv = scp_argv([], [name, f"vm0:/a/{name}"], {"vm0": SshTarget("vm0")}, JOBDIR, ["x"])
    head, path = argv[-1].split("@vm0/")
    assert head == "scp://root"
    assert urllib.parse.unquote_to_bytes(path) == os.fsencode(f"/a/{name}")
    assert re.fullmatch(r"[A-Za-z0-9_.~%/-]+", path)
    if split_place(name) is None:
        assert argv[-2] in (name, f"./{name}")


def test_scp_is_for_one_vm() -> None:
    with pytest.raises(UsageError, match="one VM"):
        split_place("vm[0-1]:/tmp")
    assert split_place("a:b") is None
