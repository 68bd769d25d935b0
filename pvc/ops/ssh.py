# SPDX-License-Identifier: Apache-2.0
"""ssh and scp to VMs: plain OpenSSH with the cluster's key and the guests' known host key."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn
from urllib.parse import quote

from pvc import run
from pvc.errors import CommandError, HostError, UsageError
from pvc.model.cluster import ClusterRecord
from pvc.model.vm import VmStatus
from pvc.ops.jobdir import JobDir
from pvc.ops.orders import is_vm_set

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
    """User, VM and path of ``[user@]vmN:path``; None: a local file, which may have colons in its name, too.

    :raise UsageError: several VMs.
    """
    head, colon, path = place.partition(":")
    user, _, vm = head.rpartition("@")
    if not colon or not is_vm_set(vm):
        return None
    if not vm.removeprefix("vm").isdecimal():
        raise UsageError(
            f"scp copies to one VM or from one, not {vm}", hint=f"pvc cp takes sets: pvc cp FILE {vm}:/tmp/"
        )
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
    return ["ssh", *line.options, *_own_config(line.options, _SSH_VALUES), *place, *line.command]


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
    words = ["scp", *options, *_own_config(options, _SCP_VALUES), *common, "--"]
    for place in places:
        parts = split_place(place)
        if parts is None:
            # What has a colon before any slash is another host to scp.
            words.append(f"./{place}" if ":" in place.partition("/")[0] else place)
            continue
        user, vm, path = parts
        target = targets[vm]
        host = f"{target.host}:{target.port}" if direct else target.name
        # scp(1): a path in a URI is relative to the home; "//" makes it absolute
        # and each byte that is no letter may mean something in it; "+" would be a space.
        words.append(f"scp://{quote(user or _DEFAULT_USER, safe='')}@{host}/{quote(os.fsencode(path))}")
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


def find_overrides(record: ClusterRecord, written: Path) -> list[str] | None:
    """Which settings of ``write_config`` plain ssh(1) does not follow, as ``ssh -G`` tells; None: it reads none.

    :raise HostError: there is no ssh, or it cannot read the user's own configuration.
    """
    name = f"vm0.{record.job_id}"
    try:
        found, meant = (_read_settings([*words, "-G", name]) for words in ([], ["-F", os.fspath(written)]))
    except CommandError as err:
        raise HostError(f"ssh cannot read its configuration: {err.stderr.strip() or err}") from None
    if found.get("userknownhostsfile") != meant.get("userknownhostsfile"):
        return None
    keys = [key.lower() for key in _settings(JobDir.of(record.job_id), ("x",))]
    return [key for key in keys if found.get(key) != meant.get(key)]


def _read_settings(words: Sequence[str]) -> dict[str, str]:
    text = run.run(["ssh", *words], env=os.environ, timeout_s=10.0)
    return {key: value for key, _, value in (line.partition(" ") for line in text.splitlines())}


def _own_config(options: Sequence[str], values: str) -> list[str]:
    """No configuration but what is said here, unless the caller names one: what stands there under "Host *" is for
    hosts of another kind (a proxy, a command, one connection for all), and system-wide files may say as much.
    """
    return [] if "F" in _letters(options, values) else ["-F", "none"]


def _letters(options: Sequence[str], values: str) -> Iterator[str]:
    is_value = False
    for word in options:
        if is_value:
            is_value = False
            continue
        for position, letter in enumerate(word[1:], start=1):
            yield letter
            if letter in values:
                is_value = position == len(word) - 1
                break


def _options(jobdir: JobDir, carrier: Sequence[str] = ()) -> list[str]:
    words = [word for name, value in _settings(jobdir, carrier).items() for word in ("-o", f"{name}={value}")]
    identities = [jobdir.identity, *_own_keys()]
    return words + [word for path in identities for word in ("-o", f"IdentityFile={_quote(os.fspath(path))}")]


# ssh_config(5): of a setting that is said twice, the first counts. So this is all that may stand under a user's
# "Host *" and keep a connection from its VM, or lead it through another's. OpenSSH 7.6 knows these names; one that is
# not known would end ssh.
_UNDISTURBED = {
    "HostName": "%h",
    "Port": "22",
    "CanonicalizeHostname": "no",
    "ControlMaster": "no",
    "ControlPath": "none",
    "ControlPersist": "no",
    "ProxyUseFdpass": "no",
    "RemoteCommand": "none",
    "RequestTTY": "auto",
    "PermitLocalCommand": "no",
    "ExitOnForwardFailure": "no",
    "IdentitiesOnly": "yes",  # an agent's keys would be tried first, and servers give up after six
    "AddKeysToAgent": "no",
    "PubkeyAuthentication": "yes",
    "HostbasedAuthentication": "no",
    "PreferredAuthentications": "publickey,keyboard-interactive,password",
    "HostKeyAlgorithms": "ALGORITHMS",
    "PubkeyAcceptedKeyTypes": "ALGORITHMS,*ssh-ed25519*,*ecdsa-sha2-nistp256*",
    "UpdateHostKeys": "no",
    "VerifyHostKeyDNS": "no",
    "NoHostAuthenticationForLocalhost": "no",
    "LogLevel": "INFO",
}
# Clusters have ed25519; an image may keep a key of another kind, a user may have one. Those in hardware (sk-, 8.2) are
# taken by the patterns: an older ssh ends at their names, and at no pattern that some name matches.
_ALGORITHMS = "ssh-ed25519,ecdsa-sha2-nistp256,ecdsa-sha2-nistp384,ecdsa-sha2-nistp521,rsa-sha2-512,rsa-sha2-256"


def _settings(jobdir: JobDir, carrier: Sequence[str]) -> dict[str, str]:
    settings = {
        "UserKnownHostsFile": _quote(os.fspath(jobdir.known_hosts)),
        "GlobalKnownHostsFile": "/dev/null",
        "StrictHostKeyChecking": "yes",
        "CheckHostIP": "no",
        # Until sshd has greeted, for which an emulated guest among others takes 20 s; the carrier tells who is lost.
        "ConnectTimeout": "60",
    }
    if carrier:
        # ssh puts `exec` before it and gives that to a shell, which takes no second one; %h is the host
        words = [shlex.quote(word.replace("%", "%%")) for word in carrier]
        settings["ProxyCommand"] = " ".join([*words, "%h"])
        settings["HostKeyAlias"] = _ANY_GUEST
    else:
        settings["ProxyCommand"] = "none"
    settings |= {name: value.replace("ALGORITHMS", _ALGORITHMS) for name, value in _UNDISTURBED.items()}
    if not carrier:
        del settings["Port"], settings["HostName"]
    return settings


# A name that known_hosts of every cluster has: all guests of one show one key.
_ANY_GUEST = "vm"
_PLAIN = re.compile(r"[\w/.,:@%+=~-]+")
_MOST_KEYS = 5  # and the cluster's own, which is the first: servers hang up after six


def _own_keys() -> list[Path]:
    """The user's keys, which guests accept, too; of one without its private half an agent may have that.

    Ssh looks for them by itself only where no key is named.
    """
    ssh = Path.home() / ".ssh"
    usual = [path for name in ("id_ed25519", "id_ecdsa", "id_rsa") if (path := ssh / name).exists()]
    try:
        public = [path.with_suffix("") for path in sorted(ssh.glob("*.pub"))]
    except OSError:
        public = []
    return list(dict.fromkeys([*usual, *public]))[:_MOST_KEYS]


def _quote(path: str) -> str:
    """A file's name for ssh_config(5), where blanks part words, % begins a token, # what is not read."""
    text = path.replace("%", "%%")
    if _PLAIN.fullmatch(text):
        return text
    # OpenSSH before 8.7 has no backslashes, so they stand only where nothing else helps.
    escaped = re.sub(r'(["\\])', r"\\\1", text)
    return f'"{escaped}"'


def become(argv: Sequence[str]) -> NoReturn:
    """Turn into ssh or scp, so that its exit code is the command's.

    :raise HostError: it is not installed.
    """
    try:
        # ssh gives a ProxyCommand to SHELL, whose words and start-up files may be anything
        os.execvpe(argv[0], list(argv), {**os.environ, "SHELL": "/bin/sh"})
    except OSError as err:
        raise HostError(f"cannot start {argv[0]}", hint="apt install openssh-client") from err
