# SPDX-License-Identifier: Apache-2.0
"""What network devices carried, by netlink (rtnetlink(7), IFLA_STATS64)."""

from __future__ import annotations

from typing import Any

from pvc.host import netlink, netns
from pvc.model.netview import Counters


def read_counters(namespace: str | None) -> dict[str, Counters]:
    """Counters of every device of a namespace, by name; ``namespace`` None: the caller's own.

    :raise HostError: there is no such namespace.
    """

    def read() -> dict[str, Counters]:
        with netlink.opened("read the devices' counters") as links:
            return {name: _counters(stats) for name, stats in links.statistics().items()}

    return netns.run_inside(namespace, read)


def _counters(stats: dict[str, Any]) -> Counters:
    return Counters(
        stats["rx_packets"],
        stats["rx_bytes"],
        stats["rx_dropped"] + stats["rx_errors"],
        stats["tx_packets"],
        stats["tx_bytes"],
        stats["tx_dropped"] + stats["tx_errors"],
    )
