# SPDX-License-Identifier: Apache-2.0
"""A node's connection table with the connections of two clusters and of the node, and the end of one cluster."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

from pvc.host import conntrack

MINE, ALSO_MINE, OTHER, OTHER6, NODE = "10.1.0.2", "fd70::2", "10.1.0.6", "fd70::6", "10.1.0.9"
RULES = """
table inet t {
  chain out { type filter hook output priority filter; ct state new accept; }
  chain in { type filter hook input priority filter; ct state new accept; }
}
table ip n {
  chain out { type nat hook output priority -100; ip daddr 10.1.0.9 udp dport 99 dnat to 10.1.0.2:53; }
}
"""


def count() -> int:
    """Entries of this namespace's table."""
    return int(Path("/proc/sys/net/netfilter/nf_conntrack_count").read_text())


def say(source: str, target: str, ports: range) -> None:
    """A connection to each port, as the table sees it."""
    family = socket.AF_INET6 if ":" in source else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as link:
        link.bind((source, 0))
        for port in ports:
            link.sendto(b"x", (target, port))


def main() -> None:
    """Run in a network namespace of its own."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    for address in (f"{MINE}/24", f"{OTHER}/24", f"{NODE}/24", f"{ALSO_MINE}/64", f"{OTHER6}/64"):
        more = ["nodad"] if ":" in address else []
        subprocess.run(["ip", "address", "add", address, "dev", "lo", *more], check=True)
    subprocess.run(["nft", "-f", "-"], input=RULES, text=True, check=True)
    say(OTHER, NODE, range(2000, 2050))
    say(NODE, OTHER, range(3000, 3020))
    say(OTHER6, "fd70::6", range(3000, 3020))
    left = count()
    say(MINE, NODE, range(2000, 2100))
    say(NODE, NODE, range(99, 100))  # what a forwarded port leads in
    say(NODE, MINE, range(4000, 4010))
    say(ALSO_MINE, OTHER6, range(2000, 2500))
    say(OTHER6, ALSO_MINE, range(2000, 2500))
    assert count() == left + 1111, (left, count())
    conntrack.flush([MINE, ALSO_MINE])
    assert count() == left, (left, count())
    conntrack.flush([MINE, ALSO_MINE])
    assert count() == left, (left, count())


if __name__ == "__main__":
    main()
