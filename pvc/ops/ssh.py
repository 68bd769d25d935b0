"""ssh and scp to VMs: plain OpenSSH with the cluster's key and the guests' known host key."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from pvc import run
from pvc.errors import CommandError, HostError, UsageError
from pvc.model.cluster import ClusterRecord
from pvc.model.vm import VmStatus
from pvc.ops.jobdir import JobDir

# ssh(1) and scp(1): options that are followed by a value
_SSH_VALUES = "BbcDEeFIiJLlmOoPpQRSWw"
_SCP_VALUES = "cDFiJloPSX"
_DEFAULT_USER = "root"


@dataclass(frozen=True)
class SshTarget:
    """How a VM is reached from where the command runs: at an address, or (None) by its name through its supervisor."""

    name: str
    host: str | None = None
    port: int | None = None


@dataclass(frozen=True)
class SshLine:
    """An ssh command line, sorted: ssh's options, the user (None: not said), the VM, the command."""

    options: tuple[str, ...]
    user: str | None
    vm: str
    command: tuple[str, ...]


def parse_ssh_line(words: Sequence[str]) -> SshLine:
    """``[options] [user@]vmN [command]``.

    :raise UsageError: there is no VM.
    """
    options, rest = _split_options(words, _SSH_VALUES)
    if not rest:
        raise UsageError("which VM?", hint="for instance: pvc ssh vm0")
    user, at, vm = rest[0].rpartition("@")
    if at and not user:
        raise UsageError(f"{rest[0]!r} names no user")
    command = list(rest[1:])
    if command[:1] == ["--"]:
        del command[0]
    return SshLine(options, user or None, vm, tuple(command))


def parse_scp_line(words: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The options of scp, and the sources and the destination.

    :raise UsageError: fewer than two places.
    """
    options, places = _split_options(words, _SCP_VALUES)
    if len(places) < 2:
        raise UsageError("scp needs a source and a destination", hint="for instance: pvc scp file vm0:/tmp/")
    return options, tuple(places)


def _split_options(words: Sequence[str], values: str) -> tuple[tuple[str, ...], Sequence[str]]:
    index = 0
    while index < len(words):
        word = words[index]
        if word == "--":
            return tuple(words[:index]), words[index + 1 :]
        if not word.startswith("-") or word == "-":
            break
        index += 1
        letters = word[1:]
        position = next((number for number, letter in enumerate(letters) if letter in values), None)
        if position is not None and position == len(letters) - 1:
            index += 1
    return tuple(words[:index]), words[index:]


def split_place(place: str) -> tuple[str | None, str, str] | None:
    """User, VM and path of ``[user@]vmN:path``; None: a local file."""
    head, colon, path = place.partition(":")
    if not colon or "/" in head:
        return None
    user, _, vm = head.rpartition("@")
    return user or None, vm, path


def find_target(vm: VmStatus) -> SshTarget:
    """Where a VM's ssh is. Its port is used where everybody reaches it, for that is the shortest way."""
    if vm.ssh_host is None or vm.ssh_port is None or vm.ssh_by_owner:
        return SshTarget(vm.name)
    return SshTarget(vm.name, vm.ssh_host, vm.ssh_port)


def ssh_argv(line: SshLine, target: SshTarget, jobdir: JobDir, carrier: Sequence[str]) -> list[str]:
    """The user's options come first: of an option that is given twice, ssh takes the first.

    ``carrier``: the command that carries a connection to the VM whose name is added.
    """
    if target.host is None:
        place = [*_options(jobdir, carrier), "-l", line.user or _DEFAULT_USER, "--", target.name]
    else:
        alias = ("-o", f"HostKeyAlias={target.name}", "-p", str(target.port))
        place = [*_options(jobdir), *alias, "-l", line.user or _DEFAULT_USER, "--", target.host]
    return ["ssh", *line.options, *place, *line.command]


def scp_argv(
    options: Sequence[str],
    places: Sequence[str],
    targets: dict[str, SshTarget],
    jobdir: JobDir,
    carrier: Sequence[str],
) -> list[str]:
    """Each ``vmN:path`` becomes a URI with the port that leads to it; all guests show one host key."""
    first = next(iter(targets.values()))
    # One command carries to all of them or to none.
    direct = all(target.host is not None for target in targets.values())
    common = [*_options(jobdir), "-o", f"HostKeyAlias={first.name}"] if direct else _options(jobdir, carrier)
    words = ["scp", *options, *common, "--"]
    for place in places:
        parts = split_place(place)
        if parts is None:
            words.append(place)
            continue
        user, vm, path = parts
        target = targets[vm]
        host = f"{target.host}:{target.port}" if direct else target.name
        # scp(1): a path in a URI is relative to the home; "//" makes it absolute
        words.append(f"scp://{user or _DEFAULT_USER}@{host}/{path}")
    return words


def write_config(record: ClusterRecord, carrier: Sequence[str]) -> str:
    """What ssh(1) reads to reach every VM of a cluster as ``vmN`` or ``vmN.JOB``: text of ssh_config(5)."""
    jobdir = JobDir.of(record.job_id)
    names = [f"vm{rank}" for rank in range(record.placement.count)]
    lines = [f"# Cluster {record.job_id} ({record.definition}), by pvc ssh-config; it goes with the cluster."]
    # Plain names first: of two clusters, ssh takes the one that is read first
    lines += ["Host " + " ".join(f"{name} {name}.{record.job_id}" for name in names), f"    User {_DEFAULT_USER}"]
    settings = _settings(jobdir, carrier)
    identities = [jobdir.identity, *_own_keys()]
    lines += [f"    {name} {value}" for name, value in settings.items()]
    lines += [f"    IdentityFile {_quote(os.fspath(path))}" for path in identities]
    return "\n".join([*lines, ""])


def is_included(record: ClusterRecord) -> bool:
    """Whether ssh(1) by itself finds the settings of ``write_config``, as ``ssh -G`` tells.

    :raise HostError: there is no ssh.
    """
    try:
        text = run.run(["ssh", "-G", f"vm0.{record.job_id}"], env=os.environ, timeout_s=10.0)
    except CommandError:
        return False
    wanted = f"userknownhostsfile {JobDir.of(record.job_id).known_hosts}"
    return any(line == wanted for line in text.splitlines())


def _options(jobdir: JobDir, carrier: Sequence[str] = ()) -> list[str]:
    words = [word for name, value in _settings(jobdir, carrier).items() for word in ("-o", f"{name}={value}")]
    identities = [jobdir.identity, *_own_keys()]
    return words + [word for path in identities for word in ("-o", f"IdentityFile={_quote(os.fspath(path))}")]


def _settings(jobdir: JobDir, carrier: Sequence[str]) -> dict[str, str]:
    settings = {
        "UserKnownHostsFile": _quote(os.fspath(jobdir.known_hosts)),
        "GlobalKnownHostsFile": "/dev/null",
        "StrictHostKeyChecking": "yes",
        "CheckHostIP": "no",
        "ConnectTimeout": "20",
    }
    if carrier:
        # ssh puts `exec` before it and gives that to a shell, which takes no second one; %h is the host
        words = [shlex.quote(word.replace("%", "%%")) for word in carrier]
        settings["ProxyCommand"] = " ".join([*words, "%h"])
    return settings


def _own_keys() -> list[Path]:
    """Ssh looks for the user's own keys by itself only where no key is named."""
    own = [Path.home() / ".ssh" / name for name in ("id_ed25519", "id_ecdsa", "id_rsa")]
    return [path for path in own if path.exists()]


def _quote(path: str) -> str:
    """A file's name for ssh_config(5), where blanks part words and % begins a token."""
    text = path.replace("%", "%%")
    return f'"{text}"' if " " in text else text


def become(argv: Sequence[str]) -> NoReturn:
    """Turn into ssh or scp, so that its exit code is the command's.

    :raise HostError: it is not installed.
    """
    try:
        os.execvp(argv[0], list(argv))
    except OSError as err:
        raise HostError(f"cannot start {argv[0]}", hint="apt install openssh-client") from err
