# SPDX-License-Identifier: Apache-2.0
"""Errors on their way to another process: every class arrives with its exit code, its words and its hint."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from pvc import codec
from pvc.channel.frames import Decoder, Kind, pack, pack_words, parse_words
from pvc.errors import CommandError, ConfigError, GuestError, HostError, Problem, PvcError, StateError
from pvc.model.cluster import Placement
from pvc.model.event import Event
from pvc.model.failure import Failure, drop_claims
from pvc.ops import forwards
from pvc.ops.agents import check_result, raise_closed
from pvc.ops.control import raise_refusal
from pvc.ops.launch import InterruptedLaunchError
from pvc.ops.progress import Progress
from pvc.supervisor.agentrelay import Relay
from pvc.supervisor.attach import parse_answer
from pvc.supervisor.events import event_line
from tests.unit.ops.worlds import make_record

Path = Callable[[PvcError], None]


def find_kinds(kind: type[PvcError] = PvcError) -> Iterator[type[PvcError]]:
    """All classes of errors that a process of pvc can end with."""
    yield kind
    for each in kind.__subclasses__():
        yield from find_kinds(each)


def make_error(kind: type[PvcError]) -> PvcError:
    if issubclass(kind, ConfigError):
        return kind([Problem("networks.yaml", 3, "nat.mtu", "is wrong"), Problem("a.yaml", 0, "", "x")], hint="mend it")
    if issubclass(kind, CommandError):
        return kind(["ip", "link"], 2, "no such device", hint="mend it")
    if issubclass(kind, InterruptedLaunchError):
        error: PvcError = kind(signal.SIGINT)
    else:
        error = kind("it is wrong")
    error.hint = "mend it"
    error.__cause__ = OSError(28, "No space left on device")
    return error


# What one process writes is read here as the other one does.


def by_the_control_port(error: PvcError) -> None:
    raise_refusal(json.loads(json.dumps(Failure.of(error).data())), "n1")


def by_pvc_node(error: PvcError) -> None:
    parse_answer(json.dumps(Failure.of(error).data()).encode())


def by_an_event(error: PvcError) -> None:
    placement: Placement = make_record().placement
    progress = Progress.of(placement, ["t"] * placement.count, 0.0)
    event = Event.of_failure(placement.shares[0].node, 1.0, Failure.of(error))
    progress.apply(codec.loads(Event, event_line(event)))
    found = progress.find_error()
    assert found is not None
    raise found


class Wire:
    """The other end of a relay's connection."""

    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes) -> None:
        self.data += data


def by_the_relay(error: PvcError) -> dict[str, str]:
    """The words of the CLOSE that a client gets for a request to an agent."""

    def find(rank: int) -> Any:
        del rank
        raise error

    wire = Wire()
    relay = Relay(cast(Any, None), cast(Any, wire), find)
    (opening,) = Decoder(in_step=True).feed(pack(Kind.OPEN, 1, pack_words([("vm", "0"), ("op", "metrics")])))
    relay._take(opening)
    (closing,) = Decoder(in_step=True).feed(wire.data)
    return dict(parse_words(closing.payload))


def by_an_agents_stream(error: PvcError) -> None:
    raise_closed(by_the_relay(error))


def by_an_agents_answer(error: PvcError) -> None:
    check_result(0, by_the_relay(error))


def by_a_forward(error: PvcError) -> None:
    reader, writer = os.pipe()
    forwards.report(writer, (), error)
    with os.fdopen(reader, "rb") as stream:
        forwards.parse_report(stream.read())


PATHS = (
    by_the_control_port,
    by_pvc_node,
    by_an_event,
    by_an_agents_stream,
    by_an_agents_answer,
    by_a_forward,
)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", dict.fromkeys(find_kinds()))
def test_every_class_keeps_its_exit_code(path: Path, kind: type[PvcError]) -> None:
    error = make_error(kind)
    with pytest.raises(PvcError) as caught:
        path(error)
    found = caught.value
    base = next(each for each in kind.__mro__ if each.__base__ is PvcError or each is PvcError)
    assert found.exit_code == error.exit_code
    assert type(found) is (base if "exit_code" in vars(base) else PvcError)
    assert " ".join(str(error).split()) in " ".join(str(found).split())
    assert found.find_hint() == "mend it"


def test_problems_keep_file_and_line() -> None:
    told = Failure.of(make_error(ConfigError))
    assert told.error == "a.yaml: x\nnetworks.yaml:3: nat.mtu: is wrong"
    found = told.about("n1").rebuild()
    assert isinstance(found, ConfigError)
    assert str(found) == f"n1: {told.error}"


@pytest.mark.parametrize(("code", "found"), [(1, 1), (9, 9), (137, 137), (0, 1), (None, 1), ("3", 1), (-9, 1)])
def test_a_code_of_no_class_stays(code: object, found: int) -> None:
    error = Failure.of_data({"exit_code": code, "error": "text"}).rebuild()
    assert (type(error), error.exit_code) == (PvcError, found)


def test_what_another_version_adds_is_passed_over() -> None:
    told = Failure.of_data({"ok": False, "error": "no", "exit_code": 5, "hint": None, "since": 3})
    assert isinstance(told.rebuild(), StateError)


def test_who_sends_no_code_is_at_fault() -> None:
    assert isinstance(Failure.of_data({"error": "no"}).rebuild(), HostError)


@pytest.mark.parametrize("data", [{}, {"error": 3}, {"error": "x", "hint": []}])
def test_what_tells_no_error(data: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="without a text"):
        Failure.of_data(data)


def test_a_guest_claims_no_class() -> None:
    forged = [("error", "no\x1b]0;x\x07"), ("exit-code", "3"), ("hint", "no\x1b]0;x\x07 file\udcff\u202e")]
    assert Failure.of_words(dict(forged)) == Failure(7, "no?]0;x?", "no?]0;x? file??")
    told = [*forged, ("from", "supervisor")]
    assert drop_claims(told) == [forged[0], forged[2]]
    with pytest.raises(GuestError, match=r"^vm4: no"):
        check_result(4, dict(drop_claims(told)))
    # Even then a number that is none counts for nothing.
    assert Failure.of_words(dict(told) | {"exit-code": "9999"}) == Failure(7, "no?]0;x?", "no?]0;x? file??")


def test_a_relay_passes_on_no_claim_of_a_guest() -> None:
    wire = Wire()
    relay = Relay(cast(Any, None), cast(Any, wire), lambda _: cast(Any, None))
    agent = type("Agent", (), {"send": lambda *_: None})()
    route = relay.add(agent, 5)
    words = [("error", "x"), ("from", "connection"), ("exit-code", "3")]
    (frame,) = Decoder(in_step=True).feed(pack(Kind.CLOSE, 5, pack_words(words)))
    route.take(5, frame)
    (passed,) = Decoder(in_step=True).feed(wire.data)
    assert parse_words(passed.payload) == [("error", "x")]


def test_no_error_is_none() -> None:
    assert Failure.of_words({"exit": "3"}) is None
