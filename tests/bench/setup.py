# SPDX-License-Identifier: Apache-2.0
"""Set-up and tear-down of one node's share of a cluster: processes started and wall time, on both data paths.

Runs as root in namespaces of its own, with a real etcd, real devices, nftables and dnsmasq. ``--plot FILE`` (or the
variable PVC_BENCH_PLOT) measures at more sizes and draws the cost against VMs and peers as SVG.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from pvc.config.load import load_root_config
from tests.bench import _plot
from tests.bench._forks import count_forks
from tests.bench._node import TOP, Remote, address_of
from tests.bench._rows import Row, row
from tests.host.scenario import WRAPPER
from tests.host.site import make_underlay

SETS = {"kernel": "nat", "ovs": "nat-ovs"}
VMS, PEERS = 8, 63
# (VMs on the node, other nodes in the job)
SIZES = ((1, PEERS), (VMS, PEERS), (32, PEERS), (64, PEERS), (VMS, 1), (VMS, 1000))
MORE_SIZES = tuple((vms, PEERS) for vms in (2, 4, 16)) + tuple((VMS, peers) for peers in (4, 16, 250))
MOST_NODES = 1001
RUNS = 5
BUDGETS: dict[str, dict[str, float]] = {
    "setup": {"budget_forks": 10, "budget_wall_s": 0.25},
    "teardown": {"budget_forks": 6, "budget_wall_s": 0.15},
}
_INSIDE = "--inside"


def measure(*words: str) -> Iterator[Row]:
    """A line for set-up and one for tear-down at each size."""
    plot = os.environ.get("PVC_BENCH_PLOT", "")
    if words[:1] == ("--plot",) and len(words) == 2:
        plot = words[1]
    if words[:1] == (_INSIDE,):
        yield from _measure_inside(more=words[1:] == ("--more",))
        return
    if os.geteuid() != 0:
        print("setup: needs root, not measured", file=sys.stderr)
        return
    argv = [*WRAPPER, sys.executable, "-m", "tests.bench", "setup", _INSIDE, *(["--more"] if plot else [])]
    rows = []
    with subprocess.Popen(argv, cwd=TOP, stdout=subprocess.PIPE, text=True) as inside:
        assert inside.stdout is not None
        for line in inside.stdout:
            found = json.loads(line)
            del found["bench"]
            rows.append(found)
            yield found
    if inside.returncode:
        raise RuntimeError("the measurement failed")
    if plot:
        Path(plot).write_text(_draw(rows))
        print(f"setup: drawn as {plot}", file=sys.stderr)


def _measure_inside(*, more: bool) -> Iterator[Row]:
    sizes = sorted(SIZES + MORE_SIZES) if more else SIZES
    make_underlay("eth0")
    node = Remote()
    node.ask("prepare", number=1, nodes=MOST_NODES, etcd=address_of(1))
    there = load_root_config(TOP / "conf" / "testbed").resource_sets
    for data_path, resource_set in SETS.items():
        if resource_set not in there:
            print(f"setup: there is no resource set {resource_set}, {data_path} is not measured", file=sys.stderr)
            continue
        if data_path == "ovs":
            node.ask("start_switch")
        for vms, peers in sizes:
            order = {"resource_set": resource_set, "vms": vms, "nodes": peers + 1}
            # The first run pays for what a daemon did long ago: the connection to etcd, imports.
            times = [(node.ask("set_up", **order), node.ask("tear_down")) for _ in range(RUNS + 1)][1:]
            forks = count_forks([{"do": "adopt"}, {"do": "set_up", **order}, {"do": "tear_down"}])
            for phase, number in (("setup", 0), ("teardown", 1)):
                budgets = BUDGETS[phase] if (vms, peers) == (VMS, PEERS) else {}
                yield row(
                    phase,
                    data_path=data_path,
                    vms=vms,
                    peers=peers,
                    forks=forks[number + 1],
                    times=[each[number] for each in times],
                    **budgets,
                )
    node.close()


def _draw(rows: list[Row]) -> str:
    """Two charts of milliseconds: against VMs with 63 peers, and against peers with 8 VMs."""
    charts = []
    for key, fixed, value in (("vms", "peers", PEERS), ("peers", "vms", VMS)):
        lines: dict[str, list[tuple[float, float]]] = {}
        for each in rows:
            if each[fixed] == value:
                points = lines.setdefault(f"{each['data_path']} {each['phase']}", [])
                points.append((float(str(each[key])), 1000 * float(str(each["wall_s"]))))
        title = {"vms": f"VMs on the node ({PEERS} peers)", "peers": f"other nodes of the job ({VMS} VMs on each)"}[key]
        charts.append(_plot.Chart(title, {name: tuple(sorted(points)) for name, points in lines.items()}))
    return _plot.render("One node's share of a cluster: milliseconds", charts)
