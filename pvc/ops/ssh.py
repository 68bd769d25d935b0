"""ssh and scp to VMs: plain OpenSSH with the cluster's key and the guests' known host key."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from pvc.errors import GuestError, HostError, UsageError
from pvc.model.vm import VmStatus
from pvc.ops.jobdir import JobDir

# ssh(1) and scp(1): options that are followed by a value
_SSH_VALUES = "BbcDEeFIiJLlmOoPpQRSWw"
_SCP_VALUES = "cDFiJloPSX"
_DEFAULT_USER = "root"


@dataclass(frozen=True)
class SshTarget:
    """How a VM is reached from where the command runs.

    ``through`` is a command that carries the connection, for a port that is not to be reached from here.
    """

    name: str
    host: str
    port: int
    through: tuple[str, ...] = ()


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


def find_target(vm: VmStatus, carrier: Callable[[], Sequence[str]]) -> SshTarget:
    """Where a VM's ssh is; ``carrier`` gives the command to which address and port are added where it is needed.

    :raise GuestError: its network has no such port.
    """
    if vm.ssh_host is None or vm.ssh_port is None:
        raise GuestError(f"no port leads to the ssh of {vm.name}", hint=f"try pvc console {vm.name}")
    return SshTarget(vm.name, vm.ssh_host, vm.ssh_port, tuple(carrier()) if vm.ssh_by_owner else ())


def ssh_argv(line: SshLine, target: SshTarget, jobdir: JobDir) -> list[str]:
    """The user's options come first: of an option that is given twice, ssh takes the first."""
    return [
        *("ssh", *line.options, *_common(target, jobdir), "-p", str(target.port)),
        *("-l", line.user or _DEFAULT_USER, "--", target.host, *line.command),
    ]


def scp_argv(options: Sequence[str], places: Sequence[str], targets: dict[str, SshTarget], jobdir: JobDir) -> list[str]:
    """Each ``vmN:path`` becomes a URI with the port that leads to it; all guests show one host key."""
    # One command carries to all of them: what it is told are address and port.
    first = next((target for target in targets.values() if target.through), next(iter(targets.values())))
    words = ["scp", *options, *_common(first, jobdir), "--"]
    for place in places:
        parts = split_place(place)
        if parts is None:
            words.append(place)
            continue
        user, vm, path = parts
        target = targets[vm]
        # scp(1): a path in a URI is relative to the home; "//" makes it absolute
        words.append(f"scp://{user or _DEFAULT_USER}@{target.host}:{target.port}/{path}")
    return words


def _common(target: SshTarget, jobdir: JobDir) -> list[str]:
    options = {
        "HostKeyAlias": target.name,
        "UserKnownHostsFile": os.fspath(jobdir.known_hosts),
        "GlobalKnownHostsFile": "/dev/null",
        "StrictHostKeyChecking": "yes",
        "CheckHostIP": "no",
        "IdentityFile": os.fspath(jobdir.identity),
        "ConnectTimeout": "20",
    }
    if target.through:
        # ssh puts `exec` before it and gives that to a shell, which takes no second one; %h and %p are address and port
        words = [shlex.quote(word.replace("%", "%%")) for word in target.through]
        options["ProxyCommand"] = " ".join([*words, "%h", "%p"])
    words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    # ssh looks for the user's own keys by itself only where no key is named
    own = [Path.home() / ".ssh" / name for name in ("id_ed25519", "id_ecdsa", "id_rsa")]
    return words + [word for path in own if path.exists() for word in ("-o", f"IdentityFile={path}")]


def become(argv: Sequence[str]) -> NoReturn:
    """Turn into ssh or scp, so that its exit code is the command's.

    :raise HostError: it is not installed.
    """
    try:
        os.execvp(argv[0], list(argv))
    except OSError as err:
        raise HostError(f"cannot start {argv[0]}", hint="apt install openssh-client") from err
