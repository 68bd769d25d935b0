# SPDX-License-Identifier: Apache-2.0
"""NoCloud documents of one VM (cloud-init's datasource of that name).

Everything is written as JSON, which is YAML too, so nothing that a user put into a name or a key can
change the structure. Keys from cloud-init's reference: "NoCloud", "Networking config version 2", modules
ssh, growpart and grub-dpkg.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from pvc.model.node import Nic
from pvc.model.vm import Mount

_ROUTE_METRIC = 100
_MOUNT = {
    "9p": (
        'grep -q " $2 9p " /proc/mounts && exit; mkdir -p "$2"; modprobe -a 9pnet_virtio 9p; '
        'mount -t 9p -o "trans=virtio,version=9p2000.L,msize=262144,$3" "$1" "$2"'
    ),
    "virtiofs": (
        'grep -q " $2 virtiofs " /proc/mounts && exit; mkdir -p "$2"; modprobe virtiofs; '
        'mount -t virtiofs -o "$3" "$1" "$2"'
    ),
}
# The seed is found by its label, as cloud-init finds it; a guest without /dev/disk asks its block devices.
_AGENT = (
    "for d in /dev/disk/by-label/CIDATA /dev/disk/by-label/cidata $(blkid -L CIDATA) /dev/vdb /dev/sr0 /dev/vdc; do "
    '[ -b "$d" ] || continue; m=$(mktemp -d); if mount -t iso9660 -o ro "$d" "$m" && [ -f "$m/pvc-agent.sh" ]; '
    'then sh "$m/pvc-agent.sh"; r=$?; umount "$m"; rmdir "$m"; exit $r; fi; umount "$m"; rmdir "$m"; done 2>/dev/null'
)
# Ours come before the user's bootcmd, which would replace them otherwise. cloud-init (22.4 and 25.1:
# mergers.dict_extract_mergers) takes merge_how away when it reads the document, or merge_type where there is no
# other, and looks for one again when it lays the vendor's under the user's.
_MERGE = {
    "merge_how": "dict(replace)+list()+str()",
    "merge_type": "dict(no_replace,recurse_list)+list(prepend)+str()",
}
# Images of earlier versions know the first only.
_MOUNT_FILES = {"9p": "mounts", "virtiofs": "mounts-virtiofs"}


@dataclass(frozen=True)
class SeedSpec:
    """What a guest learns at its first boot; ``instance_id`` is new for each cluster, or its template's."""

    instance_id: str
    hostname: str
    nics: tuple[Nic, ...]
    authorized_keys: tuple[str, ...]
    host_key: str
    host_key_pub: str
    user_data: str | None
    mounts: tuple[Mount, ...] = ()
    agent: bool = False  # pvc-agent and pvc-agent.sh are on the seed, too


def plan_seed(spec: SeedSpec) -> dict[str, str]:
    """The seed's files by name, without the agent's."""
    found = {
        "meta-data": _json(_meta_data(spec)),
        "user-data": spec.user_data if spec.user_data is not None else "#cloud-config\n{}\n",
        "vendor-data": "#cloud-config\n" + _json(_vendor_data(spec)),
    }
    for kind, name in _MOUNT_FILES.items():
        # For pvc's own images, one line each: all three are words.
        lines = [f"{each.tag} {each.target} {_mode(each)}\n" for each in spec.mounts if each.type == kind]
        if lines:
            found[name] = "".join(lines)
    if spec.nics:
        # Without it cloud-init asks DHCP on the first interface: right for one that custom-args added.
        found["network-config"] = _json(_network_config(spec))
    return found


def plan_settle(spec: SeedSpec) -> list[tuple[str, str]]:
    """The request of pvc-agent(7) that makes the same of a guest that reads no seed."""
    words = [("op", "settle"), ("hostname", spec.hostname)]
    words += [("authorized-key", key.strip()) for key in spec.authorized_keys]
    words += [("host-key", spec.host_key), ("host-key-pub", spec.host_key_pub)]
    words += [("mount", f"{each.type} {_mode(each)} {each.tag} {each.target}") for each in spec.mounts]
    for nic in spec.nics:
        if nic.address is not None:
            words.append(("address", " ".join([nic.mac, nic.address, *([nic.gateway] if nic.gateway else [])])))
        if nic.address6 is not None:  # advertisements say what the way out is
            words.append(("address", f"{nic.mac} {nic.address6}"))
    return words


def _meta_data(spec: SeedSpec) -> dict[str, Any]:
    found: dict[str, Any] = {
        "instance-id": spec.instance_id,
        "local-hostname": spec.hostname,
        "public-keys": list(spec.authorized_keys),
    }
    # For guests without a DHCPv6 client; cloud-init passes over keys that it does not know.
    six = {nic.mac: nic.address6 for nic in spec.nics if nic.address6 is not None}
    return found | {"pvc-addresses6": six} if six else found


def _vendor_data(spec: SeedSpec) -> dict[str, Any]:
    """Defaults that the user's own cloud-config overrides key by key."""
    found: dict[str, Any] = {
        # Root too gets the user's keys, without the text that tells people to log in as somebody else.
        "disable_root": False,
        # All VMs of a cluster show one host key, so the known_hosts of the cluster has one line.
        "ssh_deletekeys": True,
        "ssh_keys": {"ed25519_private": spec.host_key, "ed25519_public": spec.host_key_pub.strip()},
        "package_update": False,
        "package_upgrade": False,
        "apt": {"preserve_sources_list": True},
        # The overlay is thrown away: no boot loader has to be told about its disk.
        "grub_dpkg": {"enabled": False},
    }
    commands = _boot_commands(spec)
    if commands:
        found |= {"bootcmd": commands} | _MERGE
    return found


def _boot_commands(spec: SeedSpec) -> list[list[str]]:
    """What is done early at each boot. Not "mounts": cc_mounts leaves out what is no device below /dev."""
    commands = [["sh", "-c", _MOUNT[each.type], "mount", each.tag, each.target, _mode(each)] for each in spec.mounts]
    return [*commands, ["sh", "-c", _AGENT]] if spec.agent else commands


def _mode(mount: Mount) -> str:
    return "ro" if mount.read_only else "rw"


def _network_config(spec: SeedSpec) -> dict[str, Any]:
    return {"version": 2, "ethernets": {f"eth{i}": _ethernet(spec, i, nic) for i, nic in enumerate(spec.nics)}}


def _ethernet(spec: SeedSpec, index: int, nic: Nic) -> dict[str, Any]:
    # Without set-name, cloud-init's renderers for systemd-networkd and ifupdown look for an interface that is
    # called like the key here, whatever its address.
    found: dict[str, Any] = {"match": {"macaddress": nic.mac}, "set-name": f"eth{index}", "mtu": nic.mtu}
    if nic.address is None:
        return found | {"dhcp4": nic.dhcp, "dhcp6": False, "optional": True}
    overrides: dict[str, Any] = {
        "hostname": spec.hostname,
        "send-hostname": True,
        "use-dns": True,
        "use-domains": True,
        "use-mtu": True,
    }
    if index > 0:
        overrides["route-metric"] = _ROUTE_METRIC * (index + 1)
    found |= {"dhcp4": True, "dhcp6": nic.address6 is not None, "dhcp4-overrides": overrides}
    if nic.address6 is not None:
        # The router's advertisements say that there is DHCPv6, and what the way out is.
        found |= {"accept-ra": True, "dhcp6-overrides": {"use-dns": True, "use-domains": True}}
    return found


def _json(value: Any) -> str:
    return json.dumps(value, indent=1) + "\n"
