# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvc import codec
from pvc.errors import UsageError
from pvc.model.cluster import LAUNCH, ClusterKeys, ClusterSpec, Placement
from pvc.model.event import Event, EventKind
from pvc.model.vm import Accel, Phase
from pvc.supervisor import events as events_module
from pvc.supervisor.events import MAX_LINE, Events, event_line
from pvc.supervisor.main import find_allocated, node_name, read_spec

SPEC = ClusterSpec(
    12, "c", "d", Placement((), ()), (), {}, (512,), Accel.AUTO, ("k" * 100_000,), ClusterKeys("", "", "", "", "", "")
)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for fd in ends:
        os.close(fd)


def read_from(data: bytes) -> ClusterSpec:
    fd = os.memfd_create("stdin")
    try:
        os.write(fd, data)
        os.lseek(fd, 0, os.SEEK_SET)
        return read_spec(fd)
    finally:
        os.close(fd)


def test_the_launchers_line() -> None:
    assert read_from(LAUNCH.dumps(SPEC).encode() + b"\n") == SPEC


@pytest.mark.parametrize("data", [b"", b"{}\n", b"{}", b"nonsense\n", b"\xff\n"])
def test_something_else(data: bytes) -> None:
    with pytest.raises(UsageError):
        read_from(data)


def test_the_nodes_name() -> None:
    assert node_name({"SLURMD_NODENAME": "n7"}) == "n7"
    assert "." not in node_name({})


def test_allocated_cpus() -> None:
    environ = {"SLURM_JOB_CPUS_PER_NODE": "3(x2),1"}
    assert [find_allocated(environ, i) for i in range(4)] == [3, 3, 1, None]
    assert find_allocated({}, 0) is None
    assert find_allocated({"SLURM_JOB_CPUS_PER_NODE": "many"}, 0) is None


def test_events_are_lines(pipe: tuple[int, int]) -> None:
    events = Events(pipe[1], "n1")
    events.listening("10.0.0.1", 4711)
    events.notice("slow")
    events.error(UsageError("bad", hint="better"))
    events.ended()
    found = [codec.loads(Event, line) for line in os.read(pipe[0], 65536).splitlines()]
    assert [event.kind for event in found] == [EventKind.LISTENING, EventKind.NOTICE, EventKind.ERROR, EventKind.ENDED]
    assert (found[0].host, found[0].port) == ("10.0.0.1", 4711)
    assert (found[2].detail, found[2].hint, found[2].exit_code) == ("bad", "better", 2)
    assert {event.node for event in found} == {"n1"}


@given(st.text(max_size=3000), st.one_of(st.none(), st.text(max_size=3000)))
def test_a_line_fits_into_a_message_of_slurmstepd(detail: str, hint: str | None) -> None:
    event = Event(EventKind.VM, "n" * 60, 1795334330.3385794, rank=65535, phase=Phase.FAILED, detail=detail, hint=hint)
    line = event_line(event)
    found = codec.loads(Event, line)
    assert len(line) <= MAX_LINE
    assert (found.rank, found.phase) == (event.rank, event.phase)
    assert found == event or " … " in found.detail


def test_last_words_go_before_the_reason_does() -> None:
    event = Event(EventKind.VM, "n1", 0.0, rank=0, phase=Phase.FAILED, detail="why", last_words=("\u20ac" * 160,) * 5)
    found = codec.loads(Event, event_line(event))
    assert found.detail == "why"
    assert set(found.last_words) <= {"\u20ac" * 160}
    assert len(event_line(event)) <= MAX_LINE


def test_a_long_detail_keeps_both_ends() -> None:
    detail = f"QEMU did not start: {'x' * 5000} No such file or directory"
    found = codec.loads(Event, event_line(Event(EventKind.VM, "n1", 0.0, detail=detail)))
    assert found.detail.startswith("QEMU did not start")
    assert found.detail.endswith("No such file or directory")


def test_a_launcher_that_is_gone_is_no_error() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    Events(write_end, "n1").ended()
    os.close(write_end)


def test_a_launcher_that_does_not_read_delays_nothing_and_misses_nothing() -> None:
    async def main() -> list[str]:
        read_end, write_end = os.pipe()
        events = Events(write_end, "n1")
        for i in range(2000):
            events.notice(f"{i} {'x' * 500}")
        found = b""
        while found.count(b"\n") < 2000:
            found += await asyncio.to_thread(os.read, read_end, 65536)
        os.close(write_end)
        os.close(read_end)
        return [codec.loads(Event, line).detail.partition(" ")[0] for line in found.splitlines()]

    assert asyncio.run(main()) == [str(i) for i in range(2000)]


def test_last_words_wait_a_moment_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events_module, "_LAST_WORDS_S", 0.05)
    read_end, write_end = os.pipe()

    async def main() -> None:
        events = Events(write_end, "n1")
        for _ in range(2000):
            events.notice("x" * 500)
        events.ended()

    asyncio.run(main())
    os.close(read_end)
    os.close(write_end)
