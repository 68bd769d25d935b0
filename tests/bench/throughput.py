# SPDX-License-Identifier: Apache-2.0
"""TCP throughput and round trips between VMs' interfaces of two nodes, by data path, in one run.

Two nodes with network namespaces of their own and a veth pair of 9000 bytes between them; in each a namespace stands
for a VM, its veth in place of the VM's tap. ``kernel`` and ``ovs`` are what pvc-node sets up, with its rules and its
services; ``plain`` is a bridge with a VXLAN device made by hand and nothing else. Each has nodes of its own, so that
rules of one do not fall to another, and they take short turns, so that load of the machine does not either.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

from pvc.config.load import load_root_config
from tests.bench._node import MTU, TOP, Remote, address_of
from tests.bench._rows import Row, row, spread
from tests.bench.setup import SETS
from tests.host.scenario import WRAPPER

RUNS = 31
SECONDS = 1
PINGS = 100
BUDGETS: dict[str, dict[str, float]] = {"kernel": {"budget_ratio_to_plain": 0.95}}
PLAIN = "plain"
_INSIDE = "--inside"
_TRIES = 200
_VXLAN = "vxlan id 77 local {local} remote {remote} dstport 4789"


def measure(*words: str) -> Iterator[Row]:
    """A line for each data path."""
    if words == (_INSIDE,):
        yield from _measure_inside()
        return
    if os.geteuid() != 0:
        print("throughput: needs root, not measured", file=sys.stderr)
        return
    argv = [*WRAPPER, sys.executable, "-m", "tests.bench", "throughput", _INSIDE]
    sys.stdout.write(subprocess.run(argv, cwd=TOP, check=True, stdout=subprocess.PIPE, text=True).stdout)


class Pair:
    """Two nodes that are connected."""

    def __init__(self, *, with_switch: bool) -> None:
        self.nodes = [Remote("unshare", "--net", "--mount") for _ in range(2)]
        for device in ("eth0", "eth1"):
            first, second = (f"{device} netns {node.process.pid} mtu {MTU}" for node in self.nodes)
            subprocess.run(["ip", *f"link add {first} type veth peer name {second}".split()], check=True)
        for number, node in enumerate(self.nodes, 1):
            node.ask("prepare", number=number, nodes=2, etcd=address_of(1))
            node.ask("veths_for_taps")
            if with_switch:
                node.ask("start_switch")

    def start(self, data_path: str) -> str:
        """Connect a VM on each node, and have the second one listen; its address."""
        if data_path == PLAIN:
            address = [self._start_plain(number) for number in (1, 2)][1]
        else:
            for node in self.nodes:
                node.send("set_up", resource_set=SETS[data_path], vms=1, nodes=2)
            for node in self.nodes:
                node.read()
            address = [str(node.ask("join_endpoint")) for node in self.nodes][1]
        self.nodes[1].ask("run", argv=["iperf3", "--server", "--daemon"], inside=True)
        return address

    def _start_plain(self, number: int) -> str:
        node, address = self.nodes[number - 1], f"10.200.0.{number}"
        vxlan = _VXLAN.format(local=address_of(number), remote=address_of(3 - number))
        for line in (
            "link add plain0 mtu 1500 type bridge",
            f"link add plain1 mtu 1500 master plain0 type {vxlan}",
            "link add plain2 mtu 1500 master plain0 type veth peer name plain3",
            "link set plain0 up",
            "link set plain1 up",
            "link set plain2 up",
        ):
            node.ask("run", argv=["ip", *line.split()])
        mac = f"52:54:00:00:00:0{number}"
        node.ask("add_endpoint", device="plain3", netns=None, mac=mac, mtu=1500, address=f"{address}/16")
        return address

    def measure_tcp(self, address: str) -> tuple[float, float]:
        """(Gbit/s from the first VM to the second, seconds of it)."""
        argv = ["iperf3", "--client", address, "--time", str(SECONDS), "--json"]
        for _ in range(_TRIES):
            said = json.loads(self.nodes[0].ask("run", argv=argv, inside=True))
            if "error" not in said:
                end = said["end"]["sum_received"]
                return end["bits_per_second"] / 1e9, end["seconds"]
            # The server leaves its terminal before it listens, and is busy until it has closed the last connection.
            time.sleep(0.05)
        raise RuntimeError(said["error"])

    def measure_round_trip(self, address: str) -> float:
        """Milliseconds: the median of many pings."""
        argv = ["ping", "-c", str(PINGS), "-i", "0.002", address]
        text = self.nodes[0].ask("run", argv=argv, inside=True)
        return statistics.median(float(each) for each in re.findall(r" time=([0-9.]+) ms", text))


def _measure_inside() -> Iterator[Row]:
    there = load_root_config(TOP / "conf" / "testbed").resource_sets
    paths = [PLAIN, *(path for path, resource_set in SETS.items() if resource_set in there)]
    for path in SETS.keys() - paths:
        print(f"throughput: there is no resource set {SETS[path]}, {path} is not measured", file=sys.stderr)
    pairs = {path: Pair(with_switch=path == "ovs") for path in paths}
    targets = {path: pair.start(path) for path, pair in pairs.items()}
    tcp: dict[str, list[float]] = {path: [] for path in paths}
    wall: dict[str, list[float]] = {path: [] for path in paths}
    ping: dict[str, list[float]] = {path: [] for path in paths}
    for run in range(RUNS):
        for path in paths if run % 2 else reversed(paths):
            rate, seconds = pairs[path].measure_tcp(targets[path])
            tcp[path].append(rate)
            wall[path].append(seconds)
            ping[path].append(pairs[path].measure_round_trip(targets[path]))
    for path in paths:
        more = {**spread("gbit_s", tcp[path], 2), **spread("rtt_ms", ping[path], 3)}
        if path != PLAIN:
            # Of the same turn: what else the machine does changes from turn to turn.
            more["ratio_to_plain"] = round(statistics.median(map(_divide, tcp[path], tcp[PLAIN])), 3)
            more["rtt_ratio_to_plain"] = round(statistics.median(map(_divide, ping[path], ping[PLAIN])), 3)
        yield row("tcp", data_path=path, vms=2, peers=1, times=wall[path], **more, **BUDGETS.get(path, {}))
    for pair in pairs.values():
        for node in pair.nodes:
            node.close()


def _divide(one: float, other: float) -> float:
    return one / other
