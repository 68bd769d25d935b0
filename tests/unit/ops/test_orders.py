# SPDX-License-Identifier: Apache-2.0
"""Orders to single VMs, against real TLS servers in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from pvc.codec import to_data
from pvc.errors import GuestError
from pvc.model.vm import Order, OrderResult, Phase
from pvc.ops.jobdir import JobDir
from pvc.ops.orders import check_results, give_order, is_vm_set
from tests.unit.ops.test_control import Answer, Server, closed_port, control_of, keys, reply, serve

__all__ = ["keys", "serve"]  # fixtures
pytestmark = [pytest.mark.allow_run, pytest.mark.allow_sockets]


@pytest.mark.parametrize("word", ["vm0", "vm12", "vm[0-3]", "vm[0-3,7]", "vm1,vm[3-4]", "vm[0-9]!vm[2-8]"])
def test_names_of_vms(word: str) -> None:
    assert is_vm_set(word)


@pytest.mark.parametrize(
    "word", ["vm", "vm0:1", "vm0:2,vm1", "vmware", "debian", "debian:4", "vm0,debian", "", "vm[a]"]
)
def test_definitions(word: str) -> None:
    assert not is_vm_set(word)


def test_one_message_a_node(keys: JobDir, serve: Callable[[Answer], Server]) -> None:
    asked: list[dict[str, Any]] = []

    def answer(request: dict[str, Any]) -> bytes:
        asked.append(request)
        results = [OrderResult(rank, f"vm{rank}", "n", Phase.PAUSED) for rank in request["vms"]]
        return json.dumps({"ok": True, "vms": to_data(results)}).encode() + b"\n"

    control = control_of(keys, serve(answer).port, serve(answer).port)
    results = give_order(control, Order.PAUSE, (0, 1, 2))
    assert [result.rank for result in results] == [0, 1, 2]
    check_results(results)
    assert sorted(request["vms"] for request in asked) == [[0, 1], [2]]
    assert {(request["op"], request["order"]) for request in asked} == {("order", "pause")}


def test_what_failed_is_told_for_each_vm(keys: JobDir, serve: Callable[[Answer], Server]) -> None:
    one = serve(reply(ok=True, vms=to_data([OrderResult(0, "vm0", "n1", Phase.STOPPED, error="no", hint="do")])))
    results = give_order(control_of(keys, one.port, closed_port()), Order.START, (0, 2))
    assert [result.phase for result in results] == [Phase.STOPPED, None]
    with pytest.raises(GuestError, match="no; the supervisor on n2 does not answer") as caught:
        check_results(results)
    assert caught.value.hint == "do"


@pytest.mark.parametrize("fields", [{}, {"vms": 1}, {"vms": [{}]}])
def test_nonsense(keys: JobDir, serve: Callable[[Answer], Server], fields: dict[str, Any]) -> None:
    (result,) = give_order(control_of(keys, serve(reply(ok=True, **fields)).port), Order.STOP, (0,))
    assert "not understood" in str(result.error)
