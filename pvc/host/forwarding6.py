# SPDX-License-Identifier: Apache-2.0
"""IPv6 forwarding of the node, and the router advertisements that a host would take no more because of it.

The kernel forwards IPv6 for the whole host or not at all (ip-sysctl, "conf/all/forwarding"), and writing that setting
writes every device's. A device with accept_ra=1 takes advertisements only while it does not forward, and its default
route is dropped at the switch; accept_ra=2 takes them anyway. The caller holds the node's lock.
"""

from __future__ import annotations

from pathlib import Path

from pvc.host import sysctl

_CONF = "net/ipv6/conf"
_ALL = f"{_CONF}/all/forwarding"


def acquire(record: Path, job_id: int) -> None:
    """Forward for a job, remembering in ``record`` what was before any job of ours.

    :raise HostError: the kernel refuses.
    """
    held = sysctl.held(record)
    for directory in sorted((sysctl.ROOT / _CONF).iterdir()):
        key = f"{_CONF}/{directory.name}/accept_ra"
        listening = sysctl.read(key) == "1" and sysctl.read(f"{_CONF}/{directory.name}/forwarding") == "0"
        if key in held or (listening and directory.name not in ("all", "default", "lo")):
            sysctl.acquire(record, key, "2", job_id)
    sysctl.acquire(record, _ALL, "1", job_id, spread=f"{_CONF}/*/forwarding")


def release(record: Path, job_id: int) -> None:
    """Give up a job's need; the last one restores all. Absent is fine.

    :raise HostError: the kernel refuses a prior value.
    """
    sysctl.release(record, _ALL, job_id)
    for key in sorted(sysctl.held(record)):
        if key.startswith(_CONF) and key.endswith("/accept_ra"):
            sysctl.release(record, key, job_id)
