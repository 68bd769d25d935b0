# SPDX-License-Identifier: Apache-2.0
"""A node for measurements: a process that answers orders on standard input, in namespaces that its starter made.

    python -m tests.bench._node

One order a line, a JSON object: ``do`` names a function of ``Node``, the rest are its arguments. One answer a line:
what the function returned. The site's configuration is that of the testbed; devices, nftables, dnsmasq, etcd are real.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pvc.host import netlink, tap
from pvc.model.host import JobFacts
from pvc.node import setup, teardown
from pvc.node.context import Context
from pvc.plan.names import SWITCH
from pvc.state.ledger import Ledger
from tests.cover import cover
from tests.host.site import start_switch

TOP = Path(__file__).resolve().parents[2]
ROOT = Path("/run/world")
CONF, STATE, RUNTIME, RUNS = ROOT / "conf", ROOT / "state", ROOT / "pvc", ROOT / "runs"
JOB = 12
MTU = 9000
ENDPOINT = "vm"


def address_of(number: int, network: int = 99) -> str:
    """A node's address on the underlay, nodes being n1, n2 …; 98 is the network of Open vSwitch's tunnels."""
    return f"10.{network}.{number >> 8}.{number & 255}"


class Node:
    """What a node can be told to do."""

    def __init__(self) -> None:
        self.context = Context(CONF, STATE, RUNTIME)
        self.number = 0
        self.server: subprocess.Popen[bytes] | None = None

    def prepare(self, number: int, nodes: int, etcd: str) -> None:
        """Directories of its own, the testbed's configuration, names, and eth0 as the way to the others."""
        self.number = number
        cover("/run", "/var/tmp")
        # As ip-netns(8) does; what the machine has mounted there is covered now, and mountinfo lists it all the same.
        Path("/run/netns").mkdir()
        _call("mount --bind --make-shared /run/netns /run/netns")
        ROOT.mkdir()
        shutil.copytree(TOP / "conf" / "testbed", CONF)
        store = {"etcd-servers": [etcd], "etcd-client-port": 2379, "etcd-protocol": "http", "etcd-auth-type": "none"}
        (CONF / "batch.yaml").write_text(json.dumps({"type": "slurm", "settings": {**store, "run-dir": str(RUNS)}}))
        numbers = range(1, nodes + 1)
        names = "".join(f"{address_of(each)} n{each}\n{address_of(each, 98)} n{each}-ovs\n" for each in numbers)
        (ROOT / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
        _call(f"mount --bind {ROOT / 'hosts'} /etc/hosts")
        _call("ip link set lo up")
        _call(f"ip link set eth0 mtu {MTU} up")
        _call(f"ip addr add {address_of(number)}/16 dev eth0")
        if etcd == address_of(number):
            self._start_etcd()
        self.context.prepare()

    def start_switch(self) -> None:
        """Open vSwitch, with eth1 as the way of its tunnels."""
        start_switch("eth1", f"{address_of(self.number, 98)}/16")

    def adopt(self) -> None:
        """Take over what another process of these namespaces has prepared as the node n1."""
        self.number = 1

    def _start_etcd(self) -> None:
        url = f"http://{address_of(self.number)}:2379"
        argv = ["etcd", "--data-dir", str(ROOT / "etcd"), "--listen-client-urls", url, "--advertise-client-urls", url]
        self.server = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def set_up(self, resource_set: str, vms: int, nodes: int) -> float:
        """Seconds for this node's share of a cluster with ``vms`` VMs on each of ``nodes`` nodes."""
        names = tuple(f"n{each}" for each in range(1, nodes + 1))
        job = JobFacts(JOB, 65534, 65534, f"n{self.number}", names, (vms,) * nodes)
        begin = time.perf_counter()
        setup.set_up(self.context, job, f"1;cpus=1;{resource_set}:{vms * nodes}")
        seconds = time.perf_counter() - begin
        ledger = Ledger(STATE, JOB)
        record = ledger.read_record()
        if ledger.read_ready() is None:
            raise RuntimeError(f"refused: {record.refusal.message if record and record.refusal else 'for no reason'}")
        return seconds

    def tear_down(self) -> float:
        """Seconds to undo that."""
        begin = time.perf_counter()
        said = teardown.tear_down(self.context, JOB)
        seconds = time.perf_counter() - begin
        if said != "undone":
            raise RuntimeError(said)
        return seconds

    def veths_for_taps(self) -> None:
        """From now on a tap is one end of a veth pair, so that a namespace can be what QEMU is otherwise.

        All that is done to a tap is done to that end: its name, its port, its limits and the rules that name it.
        """
        made = tap.ensure

        def ensure(name: str, *, vnet_header: bool = True) -> None:
            if name == SWITCH:  # no VM's
                made(name, vnet_header=vnet_header)
                return
            with netlink.opened(f"make {name}") as links:
                links.add(name, "veth", peer={"ifname": f"e{name}"})

        tap.ensure = ensure

    def join_endpoint(self) -> str:
        """Give the other end of the first VM's tap its VM's addresses; the IPv4 address."""
        ready = Ledger(STATE, JOB).read_ready()
        assert ready is not None
        nic = ready.grant.vms[0].nics[0]
        address = nic.address or f"10.77.0.{self.number}/24"
        found = ready.taps[nic.tap_index]
        self.add_endpoint(f"e{found.name}", found.netns, nic.mac, nic.mtu, address)
        if not found.vnet_header:
            # QEMU offers its guest no offloads on such a tap.
            self.run(["ethtool", "-K", "eth0", "tx", "off"], inside=True)
        return address.partition("/")[0]

    def add_endpoint(self, device: str, netns: str | None, mac: str, mtu: int, address: str) -> None:
        """Make a namespace with ``device`` of ``netns`` as its only interface."""
        inside = f"ip -n {ENDPOINT}"
        _call(f"ip netns add {ENDPOINT}")
        _call(f"ip {f'-n {netns}' if netns else ''} link set {device} netns {ENDPOINT} name eth0")
        _call(f"{inside} link set lo up")
        _call(f"{inside} link set eth0 address {mac} mtu {mtu} up")
        _call(f"{inside} addr add {address} dev eth0")

    def remove_endpoint(self) -> None:
        """With its interface, whose other end goes too."""
        _call(f"ip -n {ENDPOINT} link del eth0")
        _call(f"ip netns del {ENDPOINT}")

    def run(self, argv: list[str], inside: bool = False) -> str:
        """What a command prints, in the endpoint's namespace if so told."""
        words = ["ip", "netns", "exec", ENDPOINT, *argv] if inside else argv
        return subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout


def _call(line: str) -> None:
    subprocess.run(line.split(), check=True)


class Remote:
    """A ``Node`` in a process of its own."""

    def __init__(self, *wrapper: str) -> None:
        argv = [*wrapper, sys.executable, "-m", "tests.bench._node"]
        self.process = subprocess.Popen(argv, cwd=TOP, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.read()

    def send(self, do: str, **arguments: Any) -> None:
        """Give an order and do not wait."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self.process.stdin.flush()

    def read(self) -> Any:
        """The answer to the oldest order that has none."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("a node of the measurement ended")
        return json.loads(line)

    def ask(self, do: str, **arguments: Any) -> Any:
        """Give an order and wait for its answer."""
        self.send(do, **arguments)
        return self.read()

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()


def main() -> None:
    node = Node()
    # What a daemon has imported long ago.
    from pvc.state import etcd

    del etcd
    print(os.getpid(), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        function: Callable[..., Any] = getattr(node, order.pop("do"))
        print(json.dumps(function(**order)), flush=True)


if __name__ == "__main__":
    main()
