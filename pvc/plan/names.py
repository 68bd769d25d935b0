# SPDX-License-Identifier: Apache-2.0
"""Names of what pvc makes on a node, in one place.

Linux device names have at most 15 bytes (IFNAMSIZ - 1); Slurm's job ids 26 bits (slurm.conf(5), MaxJobId: 8 digits);
in a federation 6 more, above them, are the cluster that a job is from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
# A number of 32 bits from MARKS on has six of them, and the first is a capital, which no mark of _DIGITS has.
_MORE_DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ" + _DIGITS[10:] + _DIGITS[:10]
_IN_NAMES = frozenset(_MORE_DIGITS)
MAX_DEVICE = 15
MAX_PREFIX = 8
SWITCH = "pvc-ovs"
_LINK_GROUPS = 0x70000000  # of ip-link(8), out of the way of those that people use
_MARK_DIGITS = 6
MARKS = 36**_MARK_DIGITS
UPLINK_GROUP = _LINK_GROUPS - 1  # all devices that lead to clusters, whatever they are called


def netns(job_id: int) -> str:
    """The network namespace of a job's cluster."""
    return f"pvc-{job_id}"


def host_table(job_id: int) -> str:
    """The nftables table of a job in the node's own namespace."""
    return f"pvc-{job_id}"


def uplink(prefix: str, job_id: int) -> str:
    """The device in the node's namespace that leads to a cluster; decimal job id where it fits."""
    name = f"{prefix}{job_id}"
    return name if len(name) <= MAX_DEVICE else prefix + _base36(job_id)


def bridge(index: int) -> str:
    """The bridge of the cluster's network ``index``, inside the cluster's namespace."""
    return f"br{index}"


def vxlan(index: int) -> str:
    """The tunnel end of network ``index``, inside the cluster's namespace."""
    return f"vx{index}"


def tap(rank: int, index: int) -> str:
    """The tap of VM ``rank`` on network ``index``, inside the cluster's namespace."""
    return f"t{rank}n{index}"


def port(prefix: str, mark: str, number: int) -> str:
    """A port of a switch in the node's namespace: ``number`` counts the job's ports with this prefix there."""
    return f"{prefix}.{mark}.{_base36(number)}"


def job_mark(job_id: int) -> str:
    """What stands for a job in names that anybody may know: six characters at most, also in a large federation."""
    return _base36(job_id) if job_id < MARKS else _write(job_id, _MORE_DIGITS)


def chance_mark(drawn: int) -> str:
    """What stands for a job in names that nobody is to know before they are there; ``drawn`` is below MARKS."""
    return _base36(drawn).rjust(_MARK_DIGITS, "0")


def tunnel(udp_port: int) -> str:
    """The port of the shared switch that leads to all other nodes."""
    return f"pvc-vx{udp_port}"


def link_group(job_id: int) -> int:
    """The group (ip-link(8)) of a job's devices in the node's namespace, which go together."""
    return _LINK_GROUPS | job_id & 0x0FFFFFFF


def job_of_group(group: int) -> int | None:
    """The job whose devices a group is of; None: it is no job's."""
    return group & 0x0FFFFFFF if group & ~0x0FFFFFFF == _LINK_GROUPS and group != _LINK_GROUPS else None


def find_own(groups: Mapping[int, Sequence[str]], prefixes: Sequence[str]) -> frozenset[str]:
    """Of the devices of each link group of the node's own namespace, those that pvc made; ``prefixes``: of networks."""
    found = {name for group, there in groups.items() for name in there if is_own_group(group)}
    rest = {name for there in groups.values() for name in there}
    return frozenset({*found, *(name for name in rest if name == SWITCH or any(_is_port(name, p) for p in prefixes))})


def _is_port(name: str, prefix: str) -> bool:
    """Whether a name is as ``port`` makes them: those of bridges of the site's are in no group of ours."""
    parts = name.split(".")
    return len(parts) == 3 and parts[0] == prefix and all(part and set(part) <= _IN_NAMES for part in parts[1:])


def is_own_group(group: int) -> bool:
    """Whether the devices of a link group are pvc's."""
    return group == UPLINK_GROUP or job_of_group(group) is not None


def site_tap(rank: int, index: int) -> str:
    """The tap of VM ``rank`` on the cluster's network ``index`` of the site's, inside the cluster's namespace."""
    return f"s{rank}n{index}"


def site_end(rank: int, index: int) -> str:
    """What leads from there to a port of the site's bridge."""
    return f"e{rank}n{index}"


def vm(rank: int) -> str:
    """The name of a VM, which is its host name too."""
    return f"vm{rank}"


def _base36(number: int) -> str:
    return _write(number, _DIGITS)


def _write(number: int, digits: str) -> str:
    text = ""
    while number:
        number, digit = divmod(number, len(digits))
        text = digits[digit] + text
    return text or digits[0]
