# SPDX-License-Identifier: Apache-2.0
"""How long an honest user's pvc alloc takes beside attacks, and what these cost pvc-node and the victim's supervisor.

    python -m tests.bench attacks [RUNS [NAME…]]

On a testbed of its own: student's cluster runs all the while, mallory attacks it or the node n1, and teacher allocates
a VM on that node, RUNS times before each attack (``quiet_s``) and RUNS times beside it: a machine that has other things
to do, too, is slower now than it was, so only what follows at once is compared. ``spinning`` is no attack: one process
of mallory's, or two, that compute, which is what a flood costs a small machine in any case. Each process of an attack
ends with the measurement, and by itself in minutes.
"""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

from pvc.testbed import lifecycle
from pvc.testbed.place import find_place
from tests.attacks import test_service
from tests.attacks.test_listeners import TLS_BEGINNING, crowd
from tests.attacks.victim import ATTACKER, BARE, Victim, attacking, honest_argv, write_template
from tests.bench._rows import Row, row, spread
from tests.host import frames
from tests.host.test_daemon import HOLD
from tests.slurm.clusters import Cluster
from tests.slurm.testbed import Testbed, find_pids, own_name, remove_stale, start_testbed
from tests.waits import PATIENCE_S, wait_until

RUNS = 7
MOST_RATIO = 2.0
NODE = "n1"
HONEST = "teacher"
SOCKET = "/run/pvc/node.sock"
RUN_DIR = "/var/tmp/pvc"
LOGS = {"log_bytes_per_s": "pvc-node", "slurmd_log_bytes_per_s": "slurmd"}
UIDS, LINKS_OF_UID = 40, 8  # those of HOLD

# What one process can, until its standard input says or is something: it ends with the number of times.
_LOOP = """
import select, signal, socket, sys, time
signal.alarm(600)
{prepare}
print("there", flush=True)
count = 0
while not select.select([0], [], [], 0)[0]:
    {do}
print(count)
"""
_SPIN = _LOOP.format(prepare="", do="for _ in range(100000): count += 1")
# As many requests as possible; of the connections the last sys.argv[1] are kept, which nobody is served for.
_CALL = _LOOP.format(
    prepare="kept, keep, said = [], int(sys.argv[1]), sys.argv[2].encode() * int(sys.argv[3])",
    do="""link = socket.socket(socket.AF_UNIX)
    link.settimeout(10)
    try:
        link.connect("/run/pvc/node.sock")
        if said:
            link.sendall(said + b"\\n")
            link.recv(4096)
    except OSError:
        pass
    count += 1
    kept = [link, *kept[:keep]]""",
)
# A tap by its job's owner, as the supervisor gets it, and one frame, in which the VM's MAC takes sys.argv[3]'s place.
_SEND = _LOOP.format(
    prepare="""
import fcntl, json, os, struct
with socket.socket(socket.AF_UNIX) as link:
    link.settimeout(10)
    link.connect("/run/pvc/node.sock")
    link.sendall(json.dumps({"op": "attach", "job": int(sys.argv[1]), "vm": 0}).encode() + b"\\n")
    said, fds = b"", []
    while not fds:
        part, found, _, _ = socket.recv_fds(link, 1 << 16, 8)
        assert part, said
        said, fds = said + part, fds + found
hardware = json.loads(said.partition(b"\\n")[0])["grant"]["vms"][0]["nics"][0]["mac"]
frame = bytes.fromhex(sys.argv[2]).replace(bytes.fromhex(sys.argv[3]), bytes.fromhex(hardware.replace(":", "")))
TUNGETIFF, TUNGETVNETHDRSZ, IFF_VNET_HDR = 0x800454D2, 0x800454D7, 0x4000
if struct.unpack_from("H", fcntl.ioctl(fds[0], TUNGETIFF, bytes(40)), 16)[0] & IFF_VNET_HDR:
    frame = bytes(struct.unpack("i", fcntl.ioctl(fds[0], TUNGETVNETHDRSZ, bytes(4)))[0]) + frame
""",
    do="""try:
        os.write(fds[0], frame)
        count += 1
    except OSError:
        time.sleep(0.01)""",
)


@dataclass(frozen=True)
class Scene:
    """The testbed, whose node n1 has a part of the victim's cluster; processes by their numbers there."""

    tb: Testbed
    victim: Victim
    processes: dict[str, int]


@dataclass(frozen=True)
class Attack:
    """``during`` lasts as long as the honest runs, ``around`` as long as each of them; they fill what they give."""

    name: str
    during: Callable[[Scene], AbstractContextManager[Row]] = lambda _: contextlib.nullcontext({})
    around: Callable[[Scene], AbstractContextManager[dict[str, float]]] = lambda _: contextlib.nullcontext({})
    connections: int | None = None
    budget: float | None = MOST_RATIO


def measure(runs: str = str(RUNS), *names: str) -> Iterator[Row]:
    """The honest user's time, quiet and beside each attack (of ``names``), and each attack's cost."""
    if os.geteuid() != 0:
        print("attacks: needs root, not measured", file=sys.stderr)
        return
    attacks = [each for each in _attacks() if not names or each.name in names]
    remove_stale()
    name = own_name("-bench")
    with _ended_by_sigterm():
        try:
            tb = start_testbed(name, nodes=2)
            tb.run(["srun", "-N2", "true"])
            for user in (HONEST, ATTACKER):
                write_template(tb, user)
            with Victim(tb, BARE).running() as victim:
                yield from _measure_all(Scene(tb, victim, _find_processes(tb)), attacks, int(runs))
        finally:
            lifecycle.down(find_place(name))


def _measure_all(scene: Scene, attacks: Sequence[Attack], runs: int) -> Iterator[Row]:
    honest: Row = {"data_path": "kernel", "vms": 1, "peers": 0}
    _run_honest(scene)  # what is slow only once
    times, more = _measure_one(scene, Attack("quiet"), runs)
    yield row("quiet", times=times, **honest, **more)
    for attack in attacks:
        quiet, _ = _measure_one(scene, Attack("quiet"), runs)
        times, more = _measure_one(scene, attack, runs)
        ratio: Row = {"ratio_to_quiet": round(statistics.median(times) / statistics.median(quiet), 2)}
        if attack.budget is not None:
            ratio["budget_ratio_to_quiet"] = attack.budget
        facts = {**spread("quiet_s", quiet), **ratio, "connections": attack.connections}
        yield row(attack.name, times=times, **honest, **facts, **more)
    found = _find_processes(scene.tb)
    if found != scene.processes:
        raise RuntimeError(f"the measured processes were {scene.processes}, and are {found} now")


def _attacks() -> Iterator[Attack]:
    yield Attack("spinning", partial(_spin, processes=1), connections=1, budget=None)
    yield Attack("spinning", partial(_spin, processes=2), connections=2, budget=None)
    for count in (150, 1000, 3000):
        yield Attack("control-port-silent", partial(_crowd_control_port, count=count), connections=count)
    tls = partial(_crowd_control_port, count=1000, said=TLS_BEGINNING)
    yield Attack("control-port-tls", tls, connections=1000)
    for count in (150, 500):
        yield Attack("node-socket-crowd", partial(_crowd_node, count=count), connections=count)
    yield Attack("node-socket-many-uids", _crowd_of_uids, connections=UIDS * LINKS_OF_UID)
    yield Attack("node-socket-deep-json", partial(_loop, script=_CALL, words=("0", "[", "60000")), connections=1)
    yield Attack("node-socket-refused", partial(_loop, script=_CALL, words=("20", "", "0")), connections=21)
    yield Attack("left-in-run-directory", around=_removal)
    yield Attack("dhcp-flood", _flood_dhcp)


def _measure_one(scene: Scene, attack: Attack, runs: int) -> tuple[list[float], Row]:
    """Seconds of each honest run, and what the attack cost meanwhile."""
    _settle(scene)
    before = _reset_peaks(scene)
    sizes = _read_log_sizes(scene)
    begin = time.perf_counter()
    times: list[float] = []
    figures: list[dict[str, float]] = []
    with attack.during(scene) as more:
        for _ in range(runs):
            with attack.around(scene) as found:
                times.append(_run_honest(scene))
            figures.append(found)
    elapsed = time.perf_counter() - begin
    rates = {key: round((size - sizes[key]) / elapsed, 1) for key, size in _read_log_sizes(scene).items()}
    memory = {f"{key}_rss_kib": kib for key, kib in before.items()}
    memory |= {f"{key}_peak_rss_kib": kib for key, kib in _read_memory(scene, "VmHWM").items()}
    for key in figures[0]:
        more |= spread(key, [each[key] for each in figures])
    return times, {**rates, **memory, **more}


def _run_honest(scene: Scene) -> float:
    begin = time.perf_counter()
    scene.tb.run(honest_argv(NODE), user=HONEST, timeout=PATIENCE_S)
    return time.perf_counter() - begin


@contextlib.contextmanager
def _loop(scene: Scene, script: str, words: tuple[str, ...] = ()) -> Iterator[Row]:
    more: Row = {}
    with attacking(scene.tb, script, *words, node=NODE) as process:
        begin = time.perf_counter()
        yield more
        early = process.poll()
        out, err = process.communicate("\n", timeout=PATIENCE_S)
        if early is not None or process.returncode:
            raise RuntimeError(f"an attack ended {'before it was told to: ' if early is not None else 'badly: '}{err}")
        more["times_per_s"] = round(int(out) / (time.perf_counter() - begin), 1)


@contextlib.contextmanager
def _spin(scene: Scene, processes: int) -> Iterator[Row]:
    """What so many processes of a user's cost that do nothing but compute."""
    with contextlib.ExitStack() as stack:
        for _ in range(processes):
            stack.enter_context(_loop(scene, _SPIN))
        yield {}


@contextlib.contextmanager
def _crowd_control_port(scene: Scene, count: int, said: str = "") -> Iterator[Row]:
    host, port = scene.victim.find_control_port(NODE)
    with crowd(scene.tb, "login", host, str(port), str(count), said):
        yield {}


@contextlib.contextmanager
def _crowd_node(scene: Scene, count: int) -> Iterator[Row]:
    """Each has begun a request that does not end."""
    with crowd(scene.tb, NODE, "unix", "0", str(count), b"[".hex() * 5000):
        yield {}


@contextlib.contextmanager
def _crowd_of_uids(scene: Scene) -> Iterator[Row]:
    """As many uids as a user may have by /etc/subuid; root takes them here, so that no user namespace is needed."""
    command = ["/usr/bin/python3", "-I", "-c", HOLD, SOCKET]
    with scene.tb.start(command, node=NODE, user="root", stdin=subprocess.PIPE) as process:
        try:
            there = process.stdout.read(UIDS)
            if there != "x" * UIDS:
                raise RuntimeError(f"an attack did not begin: {there}{process.stderr.read()}")
            yield {}
        finally:
            process.kill()


@contextlib.contextmanager
def _removal(scene: Scene) -> Iterator[dict[str, float]]:
    """A job of the attacker's has just ended, and what it left is about to be put aside and removed."""
    test_service.alloc(scene.tb, test_service.HEAD + test_service.DEEP + test_service.MANY)
    found: dict[str, float] = {"left_at_begin": _count_left(scene)}
    yield found
    found["left_at_end"] = _count_left(scene)


@contextlib.contextmanager
def _flood_dhcp(scene: Scene) -> Iterator[Row]:
    """From one of the attacker's own VMs, which is stopped, so that its tap is the owner's to ask for."""
    placeholder = "02:00:00:00:00:01"
    asked = frames.udp(68, 67, frames.discover(placeholder, b"flod"))
    frame = frames.ethernet(placeholder, frames.BROADCAST, 0x0800, frames.ipv4("0.0.0.0", "255.255.255.255", 17, asked))
    cluster = Cluster(scene.tb, f"{BARE}:2", "-w", NODE, user=ATTACKER, size=("-c", "1"))
    try:
        job = str(cluster.wait_running().job_id)
        scene.tb.run(["pvc", "stop", "-j", job, "vm0", "--grace", "0s"], user=ATTACKER)
        # The other one keeps the job; its emulated processor, which has nothing to boot, would be a load besides.
        scene.tb.run(["pvc", "pause", "-j", job, "vm1"], user=ATTACKER)
        with _loop(scene, _SEND, (job, frame.hex(), frames.mac(placeholder).hex())) as more:
            yield more
    finally:
        cluster.close()


def _settle(scene: Scene) -> None:
    """No job but the victim's, and nothing that is still being removed."""
    wait_until(lambda: scene.tb.jobs() == [str(scene.victim.job_id)], lack="jobs are left")
    wait_until(lambda: _count_left(scene) == 0, lack="what jobs left is not removed")


def _count_left(scene: Scene) -> int:
    """What is in the directories of other jobs, ended ones included, when find(1) comes by."""
    names = f"ls -A {RUN_DIR} | grep -vx {scene.victim.job_id}"
    return int(scene.tb.root(f"cd {RUN_DIR}; find $({names}) -mindepth 1 2>/dev/null | wc -l", NODE))


def _find_processes(tb: Testbed) -> dict[str, int]:
    """While there is no cluster but the victim's."""
    found = {"pvc_node": find_pids(tb, NODE, r"pvc-node.* serve$"), "supervisor": find_pids(tb, NODE, r" supervise$")}
    for key, pids in found.items():
        if len(pids) != 1:
            raise RuntimeError(f"on {NODE} there are {len(pids)} processes to be the {key}: {pids}")
    return {key: pid for key, (pid,) in found.items()}


def _reset_peaks(scene: Scene) -> dict[str, int]:
    """Begin anew what the kernel knows as the most (VmHWM, proc_pid_clear_refs(5)); resident memory now, in KiB."""
    for pid in scene.processes.values():
        scene.tb.root(f"echo 5 > /proc/{pid}/clear_refs", NODE)
    return _read_memory(scene, "VmRSS")


def _read_memory(scene: Scene, field: str) -> dict[str, int]:
    text = "; ".join(f"grep {field}: /proc/{pid}/status" for pid in scene.processes.values())
    lines = scene.tb.root(text, NODE).splitlines()
    return {key: int(line.split()[1]) for key, line in zip(scene.processes, lines, strict=True)}


def _read_log_sizes(scene: Scene) -> dict[str, int]:
    return {key: scene.tb.log_path(NODE, name).stat().st_size for key, name in LOGS.items()}


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Whoever is told to end undoes first."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
