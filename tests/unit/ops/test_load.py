# SPDX-License-Identifier: Apache-2.0
"""How busy guests are: what their agents say, believed as far as it can be, and waited for no longer than agreed."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import replace

import pytest
from agents import build_agent
from fleet import Fleet, fleet
from hypothesis import given
from hypothesis import strategies as st

from pvc.model.cluster import NodeEndpoint
from pvc.model.vm import AgentStatus, CloudInit, GuestLoad, Phase, VmStatus
from pvc.ops.control import Control
from pvc.ops.load import add_loads, is_asked, parse_cloud_init, parse_metrics
from pvc.ops.statusview import Scene, build_table
from tests.unit.ops.worlds import make_record, make_status

COUNT = 3
WORDS = {"load1": "0.53", "memory-total": str(500 << 20), "memory-available": str(380 << 20), "uptime": "12.25"}


@pytest.fixture(scope="module")
def agents(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    program = build_agent(tmp_path_factory.getbasetemp().parent / "pvc-agent")
    with fleet(program, tmp_path_factory.mktemp("loads"), COUNT) as found:
        yield found


def running(rank: int) -> VmStatus:
    return replace(make_status(rank, Phase.REACHABLE), node="n1", agent=AgentStatus(connected=True, release="0.1"))


@pytest.mark.allow_run  # agents are programs
@pytest.mark.allow_sockets  # their ports, and the control port
def test_a_guest_that_does_not_answer_is_shown_without(agents: Fleet) -> None:
    _, said = agents.run("sh", "-c", "echo $PPID", ranks=[1])
    pid = int(said[1, False])
    os.kill(pid, signal.SIGSTOP)
    try:
        found = add_loads(agents.control, [running(rank) for rank in range(COUNT)], limit_s=4)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert [vm.load is None for vm in found] == [False, True, False]
    load = found[0].load
    assert load is not None
    assert 0 < load.memory_used_mib < load.memory_total_mib
    assert [replace(vm, load=None) for vm in found] == [running(rank) for rank in range(COUNT)]
    again = add_loads(agents.control, [running(1), replace(running(2), phase=Phase.PAUSED)], limit_s=60)
    assert [vm.load is None for vm in again] == [False, True]


@pytest.mark.allow_sockets  # nobody listens at this port
def test_a_supervisor_that_is_gone(agents: Fleet) -> None:
    record = replace(agents.control.record, endpoints=(NodeEndpoint("n1", "127.0.0.1", 1),))
    vms = [running(rank) for rank in range(COUNT)]
    assert add_loads(Control(record, agents.jobdir), vms) == tuple(vms)


def test_the_columns() -> None:
    vms = [replace(running(0), load=parse_metrics(WORDS)), running(1)]
    header, *rows = build_table(Scene(make_record(), vms, 1000.0), None)
    shown = [[row[header.index(title)] for title in ("LOAD", "USED")] for row in rows]
    assert shown == [["0.53", "120M"], ["-", "-"]]
    assert vms[0].load == GuestLoad(0.53, 120, 500, 12)


@given(st.sampled_from(sorted(WORDS)), st.sampled_from(["", "nan", "inf", "-1", "1e999", "x", "9" * 5000]))
def test_nonsense_of_a_guest_is_no_load(key: str, value: str) -> None:
    assert parse_metrics(WORDS | {key: value}) is None


@given(st.dictionaries(st.sampled_from(sorted(WORDS)), st.text(max_size=30)))
def test_whatever_a_guest_says(words: dict[str, str]) -> None:
    load = parse_metrics(words)
    assert load is None or 0 <= load.memory_used_mib <= load.memory_total_mib


# As 25.1 writes it.
REPORT = {
    "v1": {
        "datasource": "DataSourceNoCloud [seed=/dev/vdb]",
        "init": {
            "errors": [],
            "finished": 3.5,
            "recoverable_errors": {
                "WARNING": ["Unhandled non-multipart (text/x-not-multipart) userdata: 'b'hello'...'"],
                "DEPRECATED": ["Key 'a' is deprecated."],
            },
            "start": 3.1,
        },
        "modules-final": {
            "errors": ["('scripts_user', RuntimeError('Runparts: 1 failures'))"],
            "finished": 9.5,
            "recoverable_errors": {},
            "start": 9.1,
        },
        "stage": None,
    }
}


def test_what_cloud_init_complains_of() -> None:
    assert parse_cloud_init(json.dumps(REPORT)) == CloudInit(
        True,
        ("('scripts_user', RuntimeError('Runparts: 1 failures'))",),
        ("Unhandled non-multipart (text/x-not-multipart) userdata: 'b'hello'...'",),
    )
    # 22.4, which boots.
    assert parse_cloud_init('{"v1": {"datasource": null, "init": {"errors": []}, "stage": "init"}}') == CloudInit(False)


@given(st.recursive(st.none() | st.text(max_size=9) | st.floats(), lambda each: st.lists(each) | st.dictionaries(
    st.sampled_from(["v1", "stage", "errors", "recoverable_errors", "WARNING", "modules-final", "finished"]), each
)))  # fmt: skip
def test_whatever_cloud_init_writes(report: object) -> None:
    for text in (json.dumps(report), json.dumps({"v1": report}), json.dumps(report)[:-1]):
        found = parse_cloud_init(text)
        assert all(each.isprintable() for each in (*found.errors, *found.warnings))


def test_who_is_asked() -> None:
    silent = replace(running(0), agent=AgentStatus(connected=True, problem="no answer for a minute"))
    assert [is_asked(vm) for vm in (running(0), silent, make_status(0, Phase.REACHABLE))] == [True, False, False]
