# SPDX-License-Identifier: Apache-2.0
"""Looking at the node's shared switch: its ports, a job's flows and what they carried; and frames sent through it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pvc import run
from pvc.errors import HostError

_OFCTL = ("ovs-ofctl", "--protocols=OpenFlow15", "--names")
_NUMBERS = re.compile(r"\b(table|n_packets|n_bytes)=(\d+)")


@dataclass(frozen=True)
class Flow:
    """One flow as ovs-ofctl(8) shows it."""

    table: int
    packets: int
    bytes: int
    match: str
    actions: str


def read_ports(bridge: str) -> frozenset[str]:
    """The ports of a bridge; none where there is no such bridge, or no Open vSwitch that answers."""
    try:
        return frozenset(run.run(["ovs-vsctl", "--timeout=10", "list-ports", bridge]).split())
    except HostError:
        return frozenset()


def read_flows(bridge: str, cookie: int) -> tuple[Flow, ...]:
    """A job's flows; none where there is no such bridge, or no Open vSwitch that answers."""
    try:
        said = run.run([*_OFCTL, "dump-flows", bridge, f"cookie={cookie:#x}/-1"])
    except HostError:
        return ()
    return parse_flows(said)


def parse_flows(text: str) -> tuple[Flow, ...]:
    """The flows of ovs-ofctl's "dump-flows"."""
    found = []
    for line in text.splitlines():
        head, arrow, acts = line.partition(" actions=")
        if not arrow or "cookie=" not in head:
            continue
        match = head[head.index("priority=") :] if "priority=" in head else head.rpartition(" ")[2]
        numbers = {key: int(value) for key, value in _NUMBERS.findall(head)}
        found.append(Flow(numbers.get("table", 0), numbers.get("n_packets", 0), numbers.get("n_bytes", 0), match, acts))
    return tuple(found)


def send_frames(bridge: str, port: str, frames: Sequence[bytes]) -> None:
    """Have the switch treat frames as if they had come in by ``port``; one process, however many.

    :raise HostError: Open vSwitch refuses.
    """
    lines = [f"packet-out in_port={port},packet={frame.hex()},actions=TABLE" for frame in frames]
    run.run([*_OFCTL, "bundle", bridge, "-"], stdin="\n".join(lines) + "\n")
