# SPDX-License-Identifier: Apache-2.0
"""Which devices NetworkManager and systemd-networkd leave alone by their configuration, and what makes them do so."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from pvc.plan.names import SWITCH

# systemd.network(5): what a device has that nobody can tell before it is there, and what is not of devices.
_OF_HOSTS = frozenset(
    {"Host", "Virtualization", "KernelCommandLine", "KernelVersion", "Credential", "Architecture", "Firmware"}
)
_KINDS = ("veth", "tun")
NETWORKMANAGER, NETWORKD = "NetworkManager", "systemd-networkd"


@dataclass(frozen=True)
class NetworkFile:
    """A .network file: its [Match] section, and whether it says ``Unmanaged=yes``."""

    name: str
    match: tuple[tuple[str, tuple[str, ...]], ...]
    unmanaged: bool


def patterns(prefixes: Iterable[str]) -> tuple[str, ...]:
    """Patterns for all devices in a node's own namespace of networks with these prefixes."""
    return (SWITCH, *(f"{prefix}*" for prefix in sorted(set(prefixes))))


def is_of(name: str, wanted: Sequence[str]) -> bool:
    """Whether a device has a name of one of the patterns."""
    return any(fnmatchcase(name, each) for each in wanted)


def samples(prefixes: Iterable[str]) -> tuple[str, ...]:
    """Names as devices of clusters will have: a way out, and a port of a switch."""
    return tuple(name for prefix in sorted(set(prefixes)) for name in (f"{prefix}1", f"{prefix}.1.0"))


def parse_unmanaged(text: str) -> tuple[str, ...]:
    """The specifications of ``unmanaged-devices`` in NetworkManager's configuration, as it prints it."""
    section = ""
    for line in (line.strip() for line in text.splitlines()):
        if line.startswith("["):
            section = line.strip("[]")
        key, equals, value = line.partition("=")
        if section == "keyfile" and equals and key.rstrip("+ ") == "unmanaged-devices":
            return tuple(each.strip() for each in value.replace(";", ",").split(",") if each.strip())
    return ()


def left_by_networkmanager(name: str, specifications: Sequence[str]) -> bool:
    """Whether specifications (NetworkManager.conf(5), Device List Format) name a device, by its name."""
    if any(_names(each.removeprefix("except:"), name) for each in specifications if each.startswith("except:")):
        return False
    return any(_names(each, name) for each in specifications)


def _names(specification: str, name: str) -> bool:
    kind, colon, pattern = specification.partition(":")
    if not colon:
        return kind == "*" or kind == name
    if kind != "interface-name":
        return False
    # "interface-name:=NAME" is no pattern.
    return name == pattern[1:] if pattern.startswith("=") else fnmatchcase(name, pattern)


def parse_network_file(name: str, text: str) -> NetworkFile:
    """The parts of a .network file that say which devices it is for, and whether these are left alone."""
    section, match, unmanaged = "", [], False
    for line in (line.strip() for line in text.splitlines()):
        if line.startswith("["):
            section = line.strip("[]")
            continue
        key, equals, value = (part.strip() for part in line.partition("="))
        if not equals or line.startswith(("#", ";")):
            continue
        if section == "Match":
            match.append((key, tuple(value.split())))
        elif (section, key) == ("Link", "Unmanaged"):
            unmanaged = value.lower() in ("yes", "true", "1", "on")
    return NetworkFile(name, tuple(match), unmanaged)


def taken_by_networkd(name: str, files: Sequence[NetworkFile]) -> str | None:
    """The file by which systemd-networkd would configure a device of ours of this name; None: it leaves it alone."""
    found = next((each for each in files if _matches(each, name)), None)
    return None if found is None or found.unmanaged else found.name


def _matches(file: NetworkFile, name: str) -> bool:
    """Whether a file is for a device with this name: an Ethernet one, a pair's end or a tap."""
    of_devices = [(key, values) for key, values in file.match if key not in _OF_HOSTS]
    return bool(of_devices) and all(_fits(key, values, name) for key, values in of_devices)


def _fits(key: str, values: Sequence[str], name: str) -> bool:
    known = {"Name": (name,), "OriginalName": (name,), "Type": ("ether",), "Kind": _KINDS, "Driver": _KINDS}.get(key)
    if known is None:
        return False
    negated = bool(values) and values[0].startswith("!")
    globs = [each.removeprefix("!") for each in values]
    return any(fnmatchcase(each, glob) for each in known for glob in globs) != negated


def leave_alone(manager: str, wanted: Sequence[str]) -> str:
    """The command that has a service leave devices alone; of networkd's files the first that fits counts."""
    if manager == NETWORKMANAGER:
        devices = ",".join(f"interface-name:{each}" for each in wanted)
        text = f"[keyfile]\\nunmanaged-devices+={devices}\\n"
        return f"printf '{text}' > /etc/NetworkManager/conf.d/pvc.conf; nmcli general reload"
    text = f"[Match]\\nName={' '.join(wanted)}\\n\\n[Link]\\nUnmanaged=yes\\n"
    return f"printf '{text}' > /etc/systemd/network/05-pvc.network; networkctl reload"
