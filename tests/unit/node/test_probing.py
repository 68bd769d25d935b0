# SPDX-License-Identifier: Apache-2.0
"""Who may have probes sent, how many, and what is no request for them."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvc.errors import HostError, UsageError
from pvc.node import turnstile
from pvc.node.probing import MAX_WINDOW_S, MIN_WINDOW_S, parse_request
from pvc.node.turnstile import Turnstile


def test_a_request_is_read() -> None:
    assert parse_request({"nonce": "00112233445566ff", "window_s": 2}) == (bytes.fromhex("00112233445566ff"), 2.0)


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"nonce": "00112233445566ff"},
        {"nonce": "00112233445566ff", "window_s": 1e9},
        {"nonce": "00112233445566ff", "window_s": float("nan")},
        {"nonce": "00112233445566ff", "window_s": True},
        {"nonce": "00112233445566ff", "window_s": "2"},
        {"nonce": "00112233445566ff" * 1000, "window_s": 2},
        {"nonce": "zz112233445566ff", "window_s": 2},
        {"nonce": "00 11 22 33 44 5", "window_s": 2},
        {"nonce": 7, "window_s": 2},
        {"nonce": ["00112233445566ff"], "window_s": 2},
    ],
)
def test_anything_else_is_refused(message: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        parse_request(message)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.fixed_dictionaries({}, optional={"nonce": JSON, "window_s": JSON}))
def test_no_message_breaks_the_reader(message: dict[str, Any]) -> None:
    try:
        nonce, window_s = parse_request(message)
    except UsageError:
        return
    assert len(nonce) == 8
    assert MIN_WINDOW_S <= window_s <= MAX_WINDOW_S


def test_a_job_is_examined_once_at_a_time_and_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    moment = 100.0
    monkeypatch.setattr(turnstile.time, "monotonic", lambda: moment)
    gate = Turnstile()
    with gate.passing(1, 12):
        with pytest.raises(HostError, match="being examined already"), gate.passing(1, 12):
            pass
        with gate.passing(1, 13):
            pass
    with pytest.raises(HostError), gate.passing(1, 12):
        pass
    moment += turnstile.PAUSE_S
    with gate.passing(1, 12):
        pass


def test_few_jobs_are_examined_at_a_time() -> None:
    gate = Turnstile()
    passes = [gate.passing(number, number) for number in range(turnstile.MAX_AT_ONCE)]
    for each in passes:
        each.__enter__()
    with pytest.raises(HostError), gate.passing(1, 99):
        pass
    for each in passes:
        each.__exit__(None, None, None)
    with gate.passing(1, 99):
        pass


def test_one_user_leaves_room_for_the_others() -> None:
    gate = Turnstile()
    with contextlib.ExitStack() as stack:
        for number in range(turnstile.MAX_OF_USER):
            stack.enter_context(gate.passing(1, number))
        with pytest.raises(HostError, match="being examined already"), gate.passing(1, 99):
            pass
        with gate.passing(2, 99):
            pass
