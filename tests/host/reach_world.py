# SPDX-License-Identifier: Apache-2.0
"""What another user of a node can do with what root makes there: run by test_reach.py like node_world.

    python -m tests.host.reach_world SCENARIO DATA_PATH

/dev/net/tun is open to all, as on usual distributions. Attackers are children without privileges; where that is harder
for pvc they are put into the cluster's namespace, which no user of a node can enter.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pvc.host import conntrack, ethernet, netns, tap
from pvc.node import netcheck, setup, teardown
from pvc.plan import actions, names
from pvc.state.ledger import Ledger, Ready
from tests.host import node_world
from tests.host.bridge_world import declare, frame, hear, listen
from tests.host.bridge_world import set_up as join_site
from tests.host.node_world import (
    DATA_PATH,
    DATA_PATHS,
    REQUEST,
    RUNS,
    RUNTIME,
    STATE,
    assert_clean,
    context,
    job,
    snapshot,
)
from tests.waits import wait_until

OWNER, ATTACKER = 65534, 31007
SIOCSIFHWADDR = 0x8924
TUNSETIFF, TUNSETOWNER = 0x400454CA, 0x400454CC
TAP, NO_PI, MULTI_QUEUE, VNET_HDR, NAPI = 0x2, 0x1000, 0x100, 0x4000, 0x10
SERVER, LOWEST = "02:00:00:00:00:99", "00:00:00:00:00:01"
ROUNDS = 150
OUTSIDE = "192.0.2.1"  # beyond the nodes


def run(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def become(uid: int) -> None:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def as_user(uid: int, do: Callable[[], Any]) -> Any:
    """What a child of that user gets."""
    answer, end = os.pipe()
    child = os.fork()
    if not child:
        try:
            become(uid)
            os.write(end, json.dumps(do()).encode())
        finally:
            os._exit(0)
    os.close(end)
    os.waitpid(child, 0)
    with os.fdopen(answer) as stream:
        return json.load(stream)


def inside(space: str | None, uid: int, do: Callable[[], Any]) -> Any:
    return netns.run_inside(space, lambda: as_user(uid, do))


def attach(name: str, flags: int = 0) -> int:
    """The error number of attaching to a tap by its name; 0: it is taken, for as long as this process lives."""
    fd = os.open("/dev/net/tun", os.O_RDWR)
    try:
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), TAP | NO_PI | flags))
    except OSError as err:
        os.close(fd)
        return err.errno or -1
    return 0


def set_mac(fd: int, mac: str) -> int:
    try:
        fcntl.ioctl(fd, SIOCSIFHWADDR, struct.pack("16sH6s16x", b"", 1, bytes.fromhex(mac.replace(":", ""))))
    except OSError as err:
        return err.errno or -1
    return 0


def prepared(job_id: int = 12) -> Ready:
    setup.set_up(context(), job(job_id), REQUEST)
    ready = Ledger(STATE, job_id).read_ready()
    assert ready is not None
    return ready


def devices_of(fd: int) -> list[str]:
    """The devices of the namespace behind a descriptor."""
    return run("nsenter", f"--net=/proc/{os.getpid()}/fd/{fd}", "ls", "/proc/thread-self/net/dev_snmp6").split()


# --- scenarios -----------------------------------------------------------------------------------------------------


def stopped_vm() -> None:
    """Nobody attaches to a tap that no VM holds, by whatever flags; its owner's VM does, and is not missed after it."""
    before = snapshot()
    ready = prepared()
    open_to_all = as_user(ATTACKER, lambda: os.close(os.open("/dev/net/tun", os.O_RDWR)))
    assert open_to_all is None
    for _ in range(2):
        for each in ready.taps:
            for flags in (0, VNET_HDR, MULTI_QUEUE, NAPI):
                for uid in (ATTACKER, OWNER):
                    got = inside(each.netns, uid, lambda name=each.name, flags=flags: attach(name, flags))
                    refused = errno.EINVAL if flags == MULTI_QUEUE else errno.EPERM  # it was made with one queue
                    assert got == refused, (each, flags, uid, errno.errorcode.get(got))
        fds = ethernet.open_taps(ready.taps)
        # A descriptor serves whom it is given to, who may also make himself the device's owner.
        sent = as_user(OWNER, lambda fds=fds: os.write(fds[0], bytes(10) + frame("02:00:00:00:00:01")))
        assert sent > 60
        assert as_user(OWNER, lambda fds=fds: fcntl.ioctl(fds[0], TUNSETOWNER, OWNER)) == 0
        for fd in fds:
            os.close(fd)
        assert inside(ready.taps[0].netns, ATTACKER, lambda: attach(ready.taps[0].name)) == errno.EPERM
        # The next descriptor takes it back.
        for fd in ethernet.open_taps(ready.taps):
            os.close(fd)
    teardown.tear_down(context(), 12)
    assert_clean(before)


def taken_first() -> None:
    """A tap is made some hundred times while another user tries to take it by its name: there is no moment for that."""
    tries, end = os.pipe()
    child = os.fork()
    if not child:
        become(ATTACKER)
        for number in itertools.count():
            if attach("victim") == 0:
                os.write(end, b"taken")
                os._exit(1)
            if number == 100:
                os.write(end, b"tries")
    os.close(end)
    try:
        assert os.read(tries, 5) == b"tries"
        for _ in range(ROUNDS):
            tap.ensure("victim")
            os.close(tap.open_queue("victim"))
            ethernet.remove_device("victim")
    finally:
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), os.read(tries, 5)


def owners() -> None:
    """Every tap of the node's own namespace is root's, and the names of those on Open vSwitch are never the same."""
    theirs = set(run("ls", "/sys/class/net").split())
    seen: set[str] = set()
    # What is left of jobs that nobody remembers is Open vSwitch's own.
    run("ovs-vsctl", "add-br", names.SWITCH, "--", "set", "Bridge", names.SWITCH, "datapath_type=netdev")
    for _ in range(2):
        ready = prepared()
        places = [Path("/sys/class/net") / name for name in set(run("ls", "/sys/class/net").split()) - theirs]
        found = {place.name: (place / "owner").read_text().strip() for place in places if (place / "owner").exists()}
        assert set(found.values()) <= {"0"}, found
        mine = {each.name for each in ready.taps}
        assert {names.SWITCH, *mine} == set(found)
        assert not mine & seen
        seen |= mine
        teardown.tear_down(context(), 12)


@contextmanager
def copied_mounts() -> Iterator[int]:
    """A process of another user's with a copy of all mounts, which unbinding does not reach; its id."""
    script = "mount --make-rprivate / && echo ready && exec sleep 600"
    argv = ["setpriv", f"--reuid={ATTACKER}", f"--regid={ATTACKER}", "--clear-groups", "unshare", "-Urm", "sh", "-c"]
    with subprocess.Popen([*argv, script], stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            yield child.pid
        finally:
            child.kill()


def kept() -> None:
    """A tap's descriptor and the namespace's outlive the cluster; its devices do not, nor does a copy of its mount."""
    before = snapshot()
    ready = prepared()
    fds = ethernet.open_taps(ready.taps)
    with copied_mounts() as child:
        copy = os.open(f"/proc/{child}/root{netns.path_of(ready.netns)}", os.O_RDONLY)
        space = os.open(netns.path_of(ready.netns), os.O_RDONLY)
        assert os.fstat(copy).st_ino == os.fstat(space).st_ino
        assert "up0" in devices_of(space)
        os.close(copy)
        teardown.tear_down(context(), 12)
        wait_until(lambda: devices_of(space) == ["lo"])
        os.close(space)
        assert not Path(f"/proc/{child}/root{netns.path_of(ready.netns)}").exists()
    for fd in fds:
        with suppress(OSError):
            os.write(fd, bytes(10) + frame("02:00:00:00:00:01"))
            raise AssertionError("a frame was sent by what is gone")
        assert as_user(OWNER, lambda fd=fd: set_mac(fd, SERVER)) == errno.EBADFD
        os.close(fd)
    assert_clean(before)


def closed_files() -> None:
    """Another user opens and lists nothing of a job's; its name server reads its names all the same."""
    ready = prepared()
    places = [netns.DIRECTORY, RUNTIME / "net", RUNTIME / "net" / "12", RUNTIME / "locks", RUNS, RUNS / "12", STATE]
    assert all(place.is_dir() for place in places)
    files = [each for place in (RUNTIME, STATE, netns.DIRECTORY) for each in place.rglob("*") if each.is_file()]
    assert {"hosts", "dnsmasq.conf", "plan.json", ready.netns} <= {each.name for each in files}
    files.append(netns.LINKS / ready.netns)

    def look() -> list[str]:
        opened = []
        for each in [*places, *files]:
            with suppress(OSError):
                os.close(os.open(each, os.O_RDONLY))
                opened.append(str(each))
        return opened

    allowed = {str(RUNTIME / "net" / "12" / "dnsmasq.pid")}  # which says nothing but a number
    assert set(as_user(ATTACKER, look)) <= allowed
    assert run("ip", "netns", "exec", ready.netns, "cat", "/proc/thread-self/net/dev").count("br0") == 1

    def ask() -> bool:
        query = struct.pack("!6H", 7, 0x100, 1, 0, 0, 0) + b"\3vm0\0" + struct.pack("!2H", 1, 1)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
            link.settimeout(1)
            link.sendto(query, ("10.200.255.254", 53))
            return socket.inet_aton("10.200.0.1") in link.recv(512)

    wait_until(lambda: netns.run_inside(ready.netns, ask), bear=(OSError,))
    teardown.tear_down(context(), 12)


def closed_kernel() -> None:
    """Without capabilities nobody changes or reads what the kernel has for a cluster, not even inside its namespace."""
    ready = prepared()
    changes = (
        "ip link set up0 down",
        "ip addr add 192.0.2.1/24 dev br0",
        "bridge fdb add 02:00:00:00:00:99 dev br0 self",
        "tc qdisc del dev t0n0 clsact",
        "nft delete table ip pvc",
        "ip link del br0",
    )
    reads = ("nft list table ip pvc", "bpftool prog list" if shutil.which("bpftool") else "nft list ruleset")
    for line in (*changes, *reads):
        words = line.split()
        code = inside(
            ready.netns,
            ATTACKER,
            lambda words=words: subprocess.run(words, check=False, capture_output=True).returncode,
        )
        assert code != 0, line
    for line in (*reads, *changes):
        netns.run_inside(ready.netns, lambda line=line: run(*line.split()))  # type: ignore[misc]
    teardown.tear_down(context(), 12)


def site_bridge() -> None:
    """Who holds a descriptor changes neither the MAC of the site's bridge nor where it sends frames; nor does a VM."""
    run("ip", "link", "add", "sitebr", "type", "bridge")
    run("ip", "link", "add", "out0", "type", "veth", "peer", "name", "out1")
    for name in ("out0", "out1", "sitebr"):
        run("ip", "link", "set", name, "up")
    # It has its MAC from this port, as a bridge of a machine that nobody gave one.
    run("ip", "link", "set", "out0", "master", "sitebr")
    mac = Path("/sys/class/net/sitebr/address").read_text()
    declare()
    ready = join_site("1;cpus=2;site:6").read_ready()
    assert ready is not None
    fds = ethernet.open_taps(ready.taps)
    own = ready.grant.vms[0].nics[0].mac
    assert Path("/sys/class/net/sitebr/address").read_text() == mac
    for wanted in (LOWEST, SERVER):
        changed = as_user(OWNER, lambda wanted=wanted: set_mac(fds[0], wanted))  # type: ignore[misc]
        assert changed == 0
        assert Path("/sys/class/net/sitebr/address").read_text() == mac
        assert wanted not in run("bridge", "fdb", "show", "br", "sitebr")
    with listen("out1") as outside, listen("sitebr") as node:
        outside.settimeout(10)
        # What the node sends to the server goes out, after a VM has tried to have it.
        for source, target in ((SERVER, own), (mac.strip(), own), (own, "01:80:c2:00:00:00")):
            os.write(fds[0], bytes(10) + frame(source, target))
        os.write(fds[0], bytes(10) + frame(own))
        node.send(frame("02:00:00:00:00:77", SERVER))
        heard = []
        while "02:00:00:00:00:77" not in heard:
            data = outside.recv(2048)
            if b"of pvc's tests" in data:
                heard.append(data[6:12].hex(":"))
        assert sorted(heard) == sorted([own, "02:00:00:00:00:77"])
        assert hear(node, own) is None
    for fd in fds:
        os.close(fd)
    assert inside(ready.taps[0].netns, ATTACKER, lambda: attach(ready.taps[0].name)) == errno.EPERM
    assert as_user(ATTACKER, lambda: attach("st.c.0")) in (errno.EPERM, errno.EINVAL)  # what is there is no tap
    teardown.tear_down(context(), 12)
    assert Path("/sys/class/net/sitebr/address").read_text() == mac


def earlier_binding() -> None:
    """A cluster of a version that bound namespaces where ip-netns(8) does: it is seen, works, and leaves nothing."""
    before = snapshot()
    ready = prepared()
    new, old = netns.path_of(ready.netns), netns.LINKS / ready.netns
    old.unlink()
    old.touch()
    run("mount", "--bind", str(new), str(old))
    run("umount", str(new))
    new.unlink()
    assert netns.exists(ready.netns)
    fds = ethernet.open_taps(ready.taps)
    assert "up0" in netns.run_inside(ready.netns, lambda: run("ls", "/proc/thread-self/net/dev_snmp6"))
    report = netcheck.check(Ledger(STATE, 12))
    assert not report.faults, report
    for fd in fds:
        os.close(fd)
    assert teardown.tear_down(context(), 12) == "undone"
    assert not os.path.lexists(old)
    assert_clean(before)


def tracked() -> set[str]:
    """Addresses that began a connection which the node still remembers."""
    with conntrack._open() as link:
        link.send(conntrack._pack(conntrack._GET, conntrack._REQUEST | conntrack._DUMP, struct.pack("BBH", 2, 0, 0)))
        found: set[str] = set()
        while True:
            for kind, content in conntrack._messages(link.recv(1 << 18)):
                if kind == conntrack._DONE:
                    return found
                parts = dict(conntrack._attributes(content[4:]))
                place = dict(conntrack._attributes(dict(conntrack._attributes(parts[conntrack._ORIGINAL]))[1]))
                found.add(socket.inet_ntoa(place[1]))


def forgotten() -> None:
    """A tear-down takes the cluster's connections out of the node's table, and nobody else's."""
    ready = prepared()
    run("ip", "route", "add", OUTSIDE, "via", "10.99.0.2")
    (uplink,) = [each for each in Ledger(STATE, 12).read_actions() if isinstance(each, actions.AddUplink)]

    def speak(target: str, source: str = "") -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
            link.bind((source, 0))
            for port in range(2000, 2100):
                link.sendto(b"x", (target, port))

    def begin() -> bool:
        netns.run_inside(ready.netns, lambda: speak(OUTSIDE))
        speak("10.99.0.1", "10.99.0.1")
        return {uplink.netns_address, "10.99.0.1"} <= tracked()

    wait_until(begin)
    teardown.tear_down(context(), 12)
    assert "10.99.0.1" in tracked()
    assert uplink.netns_address not in tracked()


CASES = (
    *((scenario, path) for scenario in (stopped_vm, closed_files) for path in DATA_PATHS),
    (owners, "ovs"),
    *((scenario, "kernel") for scenario in (taken_first, kept, closed_kernel, site_bridge, earlier_binding, forgotten)),
)


def main() -> None:
    scenario = next(each for each in (scenario for scenario, _ in CASES) if each.__name__ == sys.argv[1])
    os.environ[DATA_PATH] = sys.argv[2]
    node_world.run(scenario)


if __name__ == "__main__":
    main()
