# SPDX-License-Identifier: Apache-2.0
"""Nodes of a site as processes in namespaces of their own, with real guests' kernels behind real taps.

A world is the site's network: a bridge that the nodes are on, and beyond it an address that stands for everywhere else.
A node is a process that was forked from the world, unshared, and does what it is told over a pipe. A guest is a network
namespace whose only device is a tap; a pump carries frames between it and the descriptor of the cluster's tap, as QEMU
would.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import selectors
import signal
import socket
import struct
import subprocess
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

from pvc.host import ethernet, netns, tap, underlay
from pvc.model.host import Grants, JobFacts
from pvc.model.network import DataPath, EthernetNetwork, ResourceSet
from pvc.model.node import Tap
from pvc.node import apply
from pvc.plan.forwards import plan_wants
from pvc.plan.grants import take_ports
from pvc.plan.node import NodePlan, Site, find_share, plan_memberships, plan_node
from pvc.plan.placement import place
from pvc.plan.switch import count_meters
from tests.cover import cover
from tests.host import node_world, site
from tests.unit.plan.worlds import request_of
from tests.waits import PATIENCE_S, wait_until

T = TypeVar("T")
ROOT = Path("/run/world")
OUTSIDE, OUTSIDE6 = "198.51.100.1", "2001:db8:ffff::1"
ROUTER, ROUTER6 = "10.99.0.100", "fd99::100"
_NEWNS, _NEWNET = 0x00020000, 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)
TUNNELS_ROUTER = "10.98.0.100"  # the same place on the network for tunnels of Open vSwitch
_MTU = 9000
_NUMBERS = count()


def data_path() -> DataPath:
    """That of all clusters of this world."""
    return DataPath(node_world.data_path())


def own_suffix() -> str:
    """What is added to nodes' names for the network that carries their tunnels."""
    return "-ovs" if data_path() is DataPath.OVS else ""


def run(*argv: str, check: bool = True, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, check=check, capture_output=True, text=True, input=stdin, timeout=60)


def ip(line: str) -> None:
    done = run("ip", *line.split(), check=False)
    assert done.returncode == 0, (line, done.stderr)


class Node:
    """A process that is root of a node; ``call`` runs a function there."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.name = f"n{number}"
        self.address = f"10.99.0.{number}"
        self.address6 = f"fd99::{number}"
        self._pipe, theirs = Pipe()
        self.pid = os.fork()
        if self.pid == 0:
            self._pipe.close()
            try:
                _serve(theirs)
            finally:
                os._exit(0)
        theirs.close()
        assert self._pipe.recv() == "ready"
        port = f"p{number}"
        ip(f"link add {port} mtu {_MTU} type veth peer name eth0 mtu {_MTU} netns {self.pid}")
        ip(f"link set {port} master sw0 up")
        self.call(_address, self.address, self.address6)
        self.tunnel_address = self.address
        if data_path() is DataPath.OVS:
            ip(f"link add q{number} mtu {_MTU} type veth peer name eth1 mtu {_MTU} netns {self.pid}")
            ip(f"link set q{number} master sw1 up")
            self.tunnel_address = f"10.98.0.{number}"
            self.call(site.start_switch, "eth1", f"{self.tunnel_address}/24")

    def call(self, function: Callable[..., T], *arguments: Any, inside: str | None = None) -> T:
        """What a function of a module returns there, in the namespace ``inside`` of that node."""
        self._pipe.send((function, arguments, inside))
        done, value = self._pipe.recv()
        assert done, f"{self.name}: {value}"
        found: T = value
        return found

    def ask(self, function: Callable[..., T], *arguments: Any, inside: str | None = None) -> T:
        """The same of a question that must be answered; see ``ask_again``."""
        return self.call(ask_again, function, *arguments, inside=inside)

    def run(self, *argv: str, inside: str | None = None, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """A command there, whatever its exit code."""
        return self.call(_run_any, argv, stdin, inside=inside)

    def close(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def _run_any(argv: tuple[str, ...], stdin: str | None) -> subprocess.CompletedProcess[str]:
    return run(*argv, check=False, stdin=stdin)


def _serve(pipe: Connection) -> None:
    assert _LIBC.unshare(_NEWNS | _NEWNET) == 0
    run("mount", "--make-rprivate", "/")
    cover("/run", "/var/tmp")
    for directory in ("net", "locks", "runs"):
        (ROOT / directory).mkdir(parents=True)
    (ROOT / "node.lock").touch()
    (ROOT / "hosts").write_text(
        "".join(f"10.99.0.{number} n{number}\n10.98.0.{number} n{number}-ovs\n" for number in range(1, 10))
    )
    (ROOT / "resolv.conf").write_text(f"nameserver {ROUTER}\n")
    netns.ensure_directory()
    ip("link set lo up")
    pipe.send("ready")
    while True:
        try:
            function, arguments, inside = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((True, netns.run_inside(inside, lambda f=function, a=arguments: f(*a))))
        except BaseException:  # noqa: BLE001 - told to whoever asked
            pipe.send((False, traceback.format_exc()))


def _address(address: str, address6: str) -> None:
    ip(f"addr add {address}/24 dev eth0")
    ip(f"addr add {address6}/64 dev eth0 nodad")
    ip("link set eth0 up")
    ip(f"route add default via {ROUTER}")
    ip(f"-6 route add default via {ROUTER6}")


class World:
    """The site's network and its nodes; made in a network namespace of the test's own."""

    def __init__(self, count: int) -> None:
        ip("link set lo up")
        ip("link add sw0 type bridge mcast_snooping 0")
        ip(f"link set sw0 mtu {_MTU} up")
        Path("/proc/sys/net/ipv6/conf/sw0/accept_dad").write_text("0")
        for line in (
            f"addr add {ROUTER}/24 dev sw0",
            f"addr add {ROUTER6}/64 dev sw0 nodad",
            f"addr add {OUTSIDE}/32 dev lo",
            f"addr add {OUTSIDE6}/128 dev lo nodad",
        ):
            ip(line)
        ip(f"link add sw1 mtu {_MTU} type bridge mcast_snooping 0")
        ip(f"addr add {TUNNELS_ROUTER}/24 dev sw1")
        ip("link set sw1 up")
        self.nodes = [Node(number) for number in range(1, count + 1)]
        wait_until(_all_forward, lack=lambda: run("ip", "-d", "link").stdout)

    def close(self) -> None:
        for node in self.nodes:
            node.close()


def _all_forward() -> bool:
    """Whether the bridges take what their ports bring; until the kernel has had time for that, they drop it."""
    shown = run("ip", "-o", "-d", "link", "show", "type", "bridge_slave").stdout.splitlines()
    return all("bridge_slave state forwarding" in line and " state UP " in line for line in shown)


@dataclass(frozen=True)
class Cluster:
    """A job's cluster to set up on each node: VMs in order over nodes of ``cpus`` cores, one core each."""

    networks: tuple[EthernetNetwork, ...]
    count: int
    nodes: int = 2
    cpus: int = 2
    job_id: int = 12
    uid: int = 4321
    first_vni: int = 5001
    slot: int = 0
    ports_taken: frozenset[int] = frozenset()
    most_connections: int | None = None  # of the node; None: what its kernel says

    def plan(self, node: int) -> NodePlan:
        """The plan of node ``node``; called there, for it looks at the node."""
        names = tuple(f"n{number}" for number in range(1, self.nodes + 1))
        job = JobFacts(self.job_id, self.uid, self.uid, f"n{node}", names, (self.cpus,) * self.nodes)
        site = Site(
            {each.name: each for each in self.networks},
            {"all": ResourceSet("all", tuple(each.name for each in self.networks))},
            str(ROOT / "runs"),
            str(ROOT / "net"),
        )
        request = request_of(("all", self.count), cpus=1)
        placement = place(job.nodes, job.cpus, request)
        wants = plan_wants(plan_memberships(request, site), find_share(placement, job.node))
        vnis = {each.name: self.first_vni + index for index, each in enumerate(self.networks)}
        members = plan_memberships(request, site)
        share = find_share(placement, job.node)
        meters = count_meters([(each, each.ranks_of(share)) for each in members])
        ports = take_ports(self.ports_taken, wants)
        grants = Grants(vnis, self.slot, ports, tuple(range(1, 1 + meters)))
        record = hands().sysctl_record
        facts = underlay.read_facts(
            job.node, job.nodes, "eth0", etc=ROOT, suffixes=[own_suffix()], sysctl_record=record
        )
        if self.most_connections is not None:
            facts = replace(facts, most_connections=self.most_connections)
        return plan_node(job, request, placement, site, facts, grants)


def hands() -> apply.Hands:
    def no_store() -> Any:
        raise AssertionError("nobody asked for a store")

    return apply.Hands(ROOT / "host.json", ROOT / "switch.json", ROOT / "node.lock", no_store)


def set_up(cluster: Cluster, node: int) -> NodePlan:
    """On a node: all of a plan's actions, done."""
    plan = cluster.plan(node)
    for step in plan.actions:
        apply.create(step, hands())
    return plan


def tear_down(plan: NodePlan) -> None:
    """On a node: all of them undone."""
    left, errors = apply.undo(plan.actions, hands())
    assert not left, errors


def start_guest(plan: NodePlan, rank: int, *, index: int = 0) -> str:
    """On a node: a guest's kernel behind a tap; its namespace, where its device is eth0, is returned."""
    vm = next(each for each in plan.grant.vms if each.rank == rank)
    nic = vm.nics[index]
    guest, header = f"guest{next(_NUMBERS)}", plan.taps[nic.tap_index].vnet_header
    theirs = _open_tap(plan.taps[nic.tap_index])
    netns.ensure(guest)

    def prepare() -> int:
        ip("link set lo up")
        tap.ensure("eth0", vnet_header=header)
        fd = tap.open_queue("eth0", vnet_header=header)
        ip(f"link set eth0 address {nic.mac} mtu {nic.mtu}")
        Path("/proc/sys/net/ipv6/conf/eth0/accept_dad").write_text("0")
        ip("link set eth0 up")
        return fd

    mine = netns.run_inside(guest, prepare)
    if os.fork() == 0:
        _pump(theirs, mine)
    os.close(theirs)
    os.close(mine)
    return guest


def open_tap(plan: NodePlan, rank: int, *, index: int = 0) -> int:
    """On a node: the descriptor that QEMU would have, for a guest that is no kernel but an attacker."""
    vm = next(each for each in plan.grant.vms if each.rank == rank)
    return _open_tap(plan.taps[vm.nics[index].tap_index])


def _open_tap(wanted: Tap) -> int:
    """Its descriptor, once frames pass: the kernel (linkwatch) tells queue and bridge of a carrier when it has time,
    and drops frames until then.
    """
    (fd,) = ethernet.open_taps((wanted,))

    def passes() -> bool:
        shown = run("ip", "-o", "-d", "link", "show", wanted.name).stdout
        forwards = wanted.netns is None or "bridge_slave state forwarding" in shown
        return forwards and " state UP " in shown and " qdisc noop " not in shown

    netns.run_inside(wanted.netns, lambda: wait_until(passes))
    return fd


def send_frames(fd: int, frames: list[bytes]) -> None:
    """On a node: what a guest with that tap sends."""
    header = bytes(header_size(fd))
    for frame in frames:
        os.write(fd, header + frame)


def drain(fd: int, silence_s: float = 0.3) -> list[bytes]:
    """On a node: what has come to a tap, up to a moment of silence."""
    found = []
    header = header_size(fd)
    with selectors.DefaultSelector() as selector:
        selector.register(fd, selectors.EVENT_READ)
        while selector.select(silence_s):
            found.append(os.read(fd, 1 << 17)[header:])
    return found


def header_size(fd: int) -> int:
    """Bytes before each frame of a tap (TUNGETIFF, IFF_VNET_HDR)."""
    flags = struct.unpack("16xH22x", fcntl.ioctl(fd, 0x800454D2, bytes(40)))[0]
    return 10 if flags & 0x4000 else 0


def close(fd: int) -> None:
    os.close(fd)


def _pump(one: int, other: int) -> None:
    os.set_blocking(one, False)
    os.set_blocking(other, False)
    with selectors.DefaultSelector() as selector:
        selector.register(one, selectors.EVENT_READ, other)
        selector.register(other, selectors.EVENT_READ, one)
        while True:
            for key, _ in selector.select():
                try:
                    for _ in range(32):
                        os.write(key.data, os.read(key.fd, 1 << 17))
                except BlockingIOError:
                    pass
                except OSError:
                    os._exit(0)


def give_address(address: str, gateway: str | None) -> None:
    """In a guest: what DHCP would bring."""
    ip(f"addr add {address} dev eth0" + (" nodad" if ":" in address else ""))
    if gateway is not None:
        ip(f"{'-6 ' if ':' in address else ''}route add default via {gateway}")


def try_connect(address: str, port: int, source: int = 0) -> str:
    """What came back over TCP; "refused" or "silence"."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as client:
        client.settimeout(1.5)
        try:
            if source:
                client.bind(("", source))
            client.connect((address, port))
            return client.recv(200).decode()
        except TimeoutError:
            return "silence"
        except OSError as err:
            return f"refused: {err.strerror}"


def ask_again(ask: Callable[..., T], *arguments: Any) -> T:
    """What comes back of one of these questions from what must answer: frames are lost where a machine is busy or a
    link has not found its neighbour yet, and are sent again. Silence is for whoever may not be answered.
    """
    for _ in range(40):
        if (said := ask(*arguments)) and said != "silence":
            break
    return said


def connect_as(uid: int, address: str, port: int) -> str:
    """The same as ``try_connect`` as another user."""
    reading, writing = os.pipe()
    if (pid := os.fork()) == 0:
        os.setgid(uid)
        os.setuid(uid)
        os.write(writing, try_connect(address, port).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(writing)
    with os.fdopen(reading) as stream:
        return stream.read()


def serve_tcp(port: int) -> int:
    """A server that tells each caller its address, until its process is killed."""
    with socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        pid = os.fork()
        if pid == 0:
            while True:
                client, peer = server.accept()
                with client:
                    client.sendall(f"from {peer[0].removeprefix('::ffff:')} {peer[1]}".encode())
        return pid


def serve_udp(port: int, host: str = "") -> int:
    """The same, a datagram for a datagram."""
    with socket.socket(socket.AF_INET if host else socket.AF_INET6, socket.SOCK_DGRAM) as server:
        server.bind((host or "::", port))
        pid = os.fork()
        if pid == 0:
            while True:
                _, peer = server.recvfrom(2000)
                server.sendto(f"from {peer[0].removeprefix('::ffff:')} {peer[1]}".encode(), peer)
        return pid


def ask_udp(address: str, port: int, data: bytes = b"?", timeout_s: float = 1.5) -> bytes:
    """The answer to a datagram; b"" is silence."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as client:
        client.settimeout(timeout_s)
        try:
            client.sendto(data, (address, port))
            return client.recv(65536)
        except OSError:
            return b""


def send_as(uid: int, address: str, port: int, data: bytes) -> None:
    """A datagram of some user's."""
    pid = os.fork()
    if pid == 0:
        os.setgid(uid)
        os.setuid(uid)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            try:
                client.sendto(data, (address, port))
            except OSError:
                os._exit(1)
        os._exit(0)
    os.waitpid(pid, 0)


def swallow_tcp(port: int) -> None:
    """A server for one caller, who sends and is told how much came."""
    with socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        if os.fork() == 0:
            client, _ = server.accept()
            size = 0
            while data := client.recv(1 << 16):
                size += len(data)
            client.sendall(str(size).encode())
            client.close()
            os._exit(0)


def pour_tcp(address: str, port: int, size: int) -> int:
    """How much of ``size`` bytes arrived there."""
    with socket.create_connection((address, port), timeout=PATIENCE_S) as client:
        block = bytes(1 << 16)
        for _ in range(size >> 16):
            client.sendall(block)
        client.shutdown(socket.SHUT_WR)
        return int(client.recv(100))


def wait_for_router() -> None:
    """In a guest: until the kernel has heard a router advertisement."""
    wait_until(
        lambda: "default" in run("ip", "-6", "route", "show", "default").stdout, lack="no router advertisement came"
    )
