# SPDX-License-Identifier: Apache-2.0
"""What slurm.conf(5) says of nodes beside their state: names that are not their hosts', and addresses."""

from __future__ import annotations

from collections.abc import Sequence

from pvc.errors import JobError
from pvc.slurm.ask import ask
from pvc.slurm.job import parse_fields


def find_node_name(host: str) -> str | None:
    """What Slurm calls the node on this host (NodeName, where NodeHostname is the host's); None: Slurm knows no such
    host, or the host is several of its nodes.

    :raise JobError: there is no configuration of Slurm's that could be read.
    """
    names = ask(["scontrol", "show", "aliases", host], f"ask Slurm for the name of {host}").split()
    return host if host in names else names[0] if len(names) == 1 else None


def read_addresses(nodes: Sequence[str]) -> dict[str, str]:
    """Where slurmctld finds these nodes: NodeAddr, an address or a name; those that it does not have are left out.

    :raise JobError: Slurm does not answer, or does not know one of them.
    """
    argv = ["scontrol", "--oneliner", "show", "node", ",".join(nodes)]
    return parse_addresses(ask(argv, "ask Slurm for the addresses of nodes"))


def parse_addresses(text: str) -> dict[str, str]:
    """What ``read_addresses`` is told: a line for each node; what administrators wrote comes behind these keys."""
    rows = [parse_fields(line) for line in text.splitlines()]
    return {row["NodeName"]: row["NodeAddr"] for row in rows if "NodeName" in row and "NodeAddr" in row}


def locate(nodes: Sequence[str]) -> dict[str, str]:
    """As ``read_addresses``; nothing where Slurm does not say: whoever asks knows what is missing then."""
    try:
        return read_addresses(nodes)
    except JobError:
        return {}
