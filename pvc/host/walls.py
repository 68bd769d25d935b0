# SPDX-License-Identifier: Apache-2.0
"""The node's own firewalls, read: firewalld, chains of nftables, and the kernel's older tables of iptables."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from pvc import run
from pvc.errors import CommandError
from pvc.files import read_text
from pvc.host import netlink, nft
from pvc.plan.names import find_own
from pvc.plan.walls import Walls

# A query says no by 1, and one for the zone of a device that is in none by 2 (firewall-cmd(1), QUERY OPTIONS; tried).
_YES, _NO, _NO_ZONE = 0, 1, 2
_TIMEOUT_S = 20.0
# Names of those of the older tables that are in use, in the namespace of the thread (ip_tables.c).
_LEGACY = {"iptables-legacy": "ip_tables_names", "ip6tables-legacy": "ip6_tables_names"}


def read_walls(hook: str, device: str | None) -> Walls:
    """What may drop at a hook ("input", "forward") what comes by ``device``, in the caller's namespace.

    :raise HostError: a firewall does not answer.
    """
    return Walls(hook, read_zone(device), tuple(nft.read_closed_chains(hook)), _read_legacy(hook.upper()))


def read_others(prefixes: Sequence[str]) -> list[str]:
    """The devices in the caller's namespace that are not pvc's; ``prefixes`` are those of networks.

    :raise HostError: the kernel does not answer.
    """
    with netlink.opened("list devices") as links:
        own = find_own(links.groups(), prefixes)
        return [link.name for link in links.all() if link.name not in own]


def read_zone(device: str | None) -> str | None:
    """The zone of firewalld that a device is in, or of devices that nothing is said of; None: it does not run.

    :raise HostError: it does not answer.
    """
    if shutil.which("firewall-cmd", path=run.PATH) is None:
        return None
    try:
        _ask("--state")
    except CommandError:
        return None  # 252 says that it does not run, 36 that there is no D-Bus
    zone = _ask(f"--get-zone-of-interface={device}", ok_codes=(_YES, _NO_ZONE)) if device else ""
    return zone if zone and zone != "no zone" else _ask("--get-default-zone")


def lets_in(zone: str, port: int) -> bool:
    """Whether firewalld's zone accepts datagrams to a UDP port, as far as its target and ports say.

    :raise HostError: it does not answer.
    """
    return _accepts_all(zone) or _asks(f"--zone={zone}", f"--query-port={port}/udp")


def trusts(pattern: str) -> bool:
    """Whether devices of this name, or of this pattern ("nat+"), are in a zone of firewalld that accepts everything.

    :raise HostError: it does not answer.
    """
    zone = _ask(f"--get-zone-of-interface={pattern}", ok_codes=(_YES, _NO_ZONE))
    return bool(zone) and zone != "no zone" and _accepts_all(zone)


def _accepts_all(zone: str) -> bool:
    return _ask("--permanent", f"--zone={zone}", "--get-target") == "ACCEPT"


def _asks(*words: str) -> bool:
    return _ask(*words, ok_codes=(_YES, _NO)) == "yes"


def _ask(*words: str, ok_codes: tuple[int, ...] = (_YES,)) -> str:
    return run.run(["firewall-cmd", *words], timeout_s=_TIMEOUT_S, ok_codes=ok_codes).strip()


def _read_legacy(chain: str) -> tuple[str, ...]:
    found = []
    for program, names in _LEGACY.items():
        # To ask would load the table, where nobody uses it.
        used = read_text(Path("/proc/thread-self/net") / names, default="").split()
        if "filter" not in used or shutil.which(program, path=run.PATH) is None:
            continue
        if run.run([program, "-S", chain]).startswith(f"-P {chain} DROP"):
            found.append(program)
    return tuple(found)
