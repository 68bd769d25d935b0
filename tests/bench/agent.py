# SPDX-License-Identifier: Apache-2.0
"""What the agents cost: a command in one guest, in many at once, and files both ways beside the channel's own limit.

``fan-out`` is one command in VMs without VMs: the real agents, each a process of this machine (its fork of the command
is paid here, too), behind the supervisor's real classes and TLS, on one connection. The rest is a guest under QEMU.
"""

from __future__ import annotations

import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.bench._rows import Row, row, spread

sys.path.insert(0, os.fspath(Path(__file__).parents[1] / "vm"))

VMS = (1, 8, 64, 256, 512)
RUNS = 3
ROUNDS = 100
SIZE = 64 << 20
REAL = 8


def measure(*words: str) -> Iterator[Row]:
    """All, or ``fan-out`` or ``guest`` alone."""
    if not words or "fan-out" in words:
        yield from _measure_fan_out()
    if not words or "guest" in words:
        yield from _measure_guest()


def _measure_fan_out() -> Iterator[Row]:
    from fleet import fleet
    from guests import build_agent

    program = build_agent()
    for count in VMS:
        with tempfile.TemporaryDirectory(prefix="pvc-bench-") as base, fleet(program, Path(base), count) as many:
            times = []
            for _ in range(RUNS):
                begin = time.perf_counter()
                outcomes, _ = many.run("true")
                times.append(time.perf_counter() - begin)
                assert {outcome.code for outcome in outcomes} == {0}
            yield row("fan-out", vms=count, times=times, **spread("ms_per_vm", [1000 * each / count for each in times]))


def _measure_guest() -> Iterator[Row]:
    from reached import reached

    with tempfile.TemporaryDirectory(prefix="pvc-bench-") as base:
        raw = Path(base) / "raw"
        port = ("-chardev", f"socket,id=raw,path={raw},server=on,wait=off")
        device = ("-device", "virtserialport,bus=channels.0,chardev=raw,name=raw,id=raw")
        with reached(Path(base) / "one", 1, memory_mib=1024, custom_args=(*port, *device)) as one:
            yield from _measure_limit(one, raw)
            yield from _measure_round_trips(one)
            yield from _measure_copies(one, Path(base))
        with reached(Path(base) / "many", REAL) as many:
            times = [_time(lambda: many.run("true")) for _ in range(RUNS)]
            yield row("fan-out, real guests", vms=REAL, times=times)


def _time(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def _measure_round_trips(one: object) -> Iterator[Row]:
    from reached import Reached

    from pvc.ops.agents import Agents, ask
    from pvc.ops.loop import Loop

    assert isinstance(one, Reached)
    loop = Loop((), lambda _: None)
    agents = Agents(one.control, loop)
    try:
        for phase, words in (
            ("ask (metrics)", [("op", "metrics")]),
            ("exec true", [("op", "exec"), ("arg", "true")]),
        ):
            times = [_time(lambda words=words: ask(agents, loop, 0, words, 60)) for _ in range(ROUNDS)]  # type: ignore[misc]
            yield row(phase, vms=1, times=times)
    finally:
        agents.close()
        loop.close()
    yield row("exec true, connection and all", vms=1, times=[_time(lambda: one.run("true")) for _ in range(RUNS)])


def _rates(times: list[float]) -> Row:
    return spread("mib_per_s", [(SIZE >> 20) / each for each in times], digits=1)


def _measure_limit(one: object, raw: Path) -> Iterator[Row]:
    """What a virtio-serial port of the same kind carries without any agent: zeros from and to the guest's kernel."""
    from reached import Reached

    assert isinstance(one, Reached)
    blocks = f"bs=64k count={SIZE >> 16}"
    find = "p=$(grep -lx raw /sys/class/virtio-ports/*/name); p=${p%/name}; p=/dev/${p##*/}"

    def receive() -> None:
        left = SIZE
        while left > 0:
            left -= len(connection.recv(1 << 18))

    with socket.socket(socket.AF_UNIX) as connection, ThreadPoolExecutor(1) as beside:
        connection.connect(os.fspath(raw))
        for phase, command, work in (
            ("limit, guest to host", f"dd if=/dev/zero of=$p {blocks}", receive),
            (
                "limit, host to guest",
                f"dd if=$p of=/dev/null iflag=fullblock {blocks}",
                lambda: connection.sendall(bytes(SIZE)),
            ),
        ):
            times = []
            for _ in range(RUNS):
                begin = time.perf_counter()
                ran = beside.submit(one.run, "sh", "-c", f"{find}; {command}")
                work()
                assert ran.result().codes == [0]
                times.append(time.perf_counter() - begin)
            yield row(phase, vms=1, times=times, **_rates(times))


def _measure_copies(one: object, base: Path) -> Iterator[Row]:
    """Bytes of a command, which no file system and no checksum delays, and files."""
    from reached import Reached

    from pvc.ops.copy import copy

    assert isinstance(one, Reached)
    source = base / "data"
    with source.open("wb") as stream:
        for _ in range(SIZE >> 20):
            stream.write(os.urandom(1 << 20))
    mib = SIZE >> 20

    times = [_time(lambda: one.run("dd", "if=/dev/zero", "bs=256k", f"count={4 * mib}")) for _ in range(RUNS)]
    yield row("exec, guest to host", vms=1, times=times, **_rates(times))
    times = []
    for _ in range(RUNS):
        with source.open("rb") as stream:
            times.append(
                _time(lambda stream=stream: one.run("dd", "of=/dev/null", "bs=256k", stdin_fd=stream.fileno()))
            )  # type: ignore[misc]
    yield row("exec, host to guest", vms=1, times=times, **_rates(times))
    words = [os.fspath(source), "vm0:/tmp/data"]
    times = [_time(lambda: copy(one.control, words, "root").raise_failed()) for _ in range(RUNS)]
    yield row("cp, host to guest", vms=1, times=times, **_rates(times))
    back = ["vm0:/tmp/data", os.fspath(base / "back")]
    times = [_time(lambda: copy(one.control, back, "root").raise_failed()) for _ in range(RUNS)]
    assert (base / "back").read_bytes() == source.read_bytes()
    yield row("cp, guest to host", vms=1, times=times, **_rates(times))
