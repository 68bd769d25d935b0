"""Names of what pvc makes on a node, in one place.

Linux device names have at most 15 bytes (IFNAMSIZ - 1); Slurm's job ids at most 8 digits
(slurm.conf(5), MaxJobId).
"""

from __future__ import annotations

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
MAX_DEVICE = 15
MAX_PREFIX = 8
SWITCH = "pvc-ovs"
_LINK_GROUPS = 0x70000000  # of ip-link(8), out of the way of those that people use
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


def port(prefix: str, job_id: int, number: int) -> str:
    """A port of a switch in the node's namespace: ``number`` counts the job's ports with this prefix there."""
    return f"{prefix}.{_base36(job_id)}.{_base36(number)}"


def tunnel(udp_port: int) -> str:
    """The port of the shared switch that leads to all other nodes."""
    return f"pvc-vx{udp_port}"


def link_group(job_id: int) -> int:
    """The group (ip-link(8)) of a job's devices in the node's namespace, which go together."""
    return _LINK_GROUPS | job_id & 0x0FFFFFFF


def vm(rank: int) -> str:
    """The name of a VM, which is its host name too."""
    return f"vm{rank}"


def _base36(number: int) -> str:
    text = ""
    while number:
        number, digit = divmod(number, 36)
        text = _DIGITS[digit] + text
    return text or "0"
