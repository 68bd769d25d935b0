# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvc.model.vm import Phase, Restart
from pvc.plan.lastwords import read_last_words
from pvc.supervisor.ending import Ending, explain_end, plan_restart


def explain(status: int = 0, *, requested: bool = False, reason: str | None = None, stderr: str = "") -> Ending:
    return explain_end(status, requested=requested, reason=reason, stderr=stderr, memory_mib=512)


@pytest.mark.parametrize("status", [0, 1, -9])
@pytest.mark.parametrize("reason", [None, "guest-panic", "host-qmp-quit"])
def test_what_was_asked_for_is_no_failure(status: int, reason: str | None) -> None:
    assert explain(status, requested=True, reason=reason) == Ending(Phase.STOPPED, "stopped on request")


@pytest.mark.parametrize(
    ("reason", "phase", "words"),
    [
        ("guest-shutdown", Phase.STOPPED, "the guest powered itself off"),
        ("guest-panic", Phase.FAILED, "the guest's kernel panicked"),
        ("host-signal", Phase.STOPPED, "signal from outside"),
        ("host-ui", Phase.STOPPED, "host-ui"),
    ],
)
def test_what_qemu_said(reason: str, phase: Phase, words: str) -> None:
    found = explain(reason=reason)
    assert found.phase is phase
    assert words in found.detail


def test_a_guest_that_was_asked_powered_down_or_did_not() -> None:
    def explain(reason: str | None) -> str:
        return explain_end(0, requested=True, reason=reason, stderr="", memory_mib=512, grace_s=10).detail

    assert explain("guest-shutdown") == "stopped on request, its guest powered down"
    assert explain("host-qmp-quit") == "stopped on request, switched off: no power-down within 10 s"


def test_a_crash_shows_signal_and_last_words() -> None:
    found = explain(-6, stderr="kvm.c: Assertion failed")
    assert found == Ending(Phase.FAILED, "QEMU was killed by SIGABRT: kvm.c: Assertion failed")


def test_sigkill_suggests_memory() -> None:
    found = explain(-9)
    assert found.detail == "QEMU was killed by SIGKILL"
    assert "512 MiB" in (found.hint or "")


def test_an_exit_code() -> None:
    assert explain(1, stderr="no such device").detail == "QEMU ended with exit code 1: no such device"
    assert explain(-64).detail.startswith("QEMU was killed by")


def test_last_words() -> None:
    text = b"one\r\ntwo\r\n\r\n\x1b[31mthree\x1b[0m\r\n\x1b]0;title\x07 \x08four\xff\n\x1b[2J\x1b(B"
    assert read_last_words(text, 3) == ("two", "three", "four\N{REPLACEMENT CHARACTER}")
    assert read_last_words(b"") == ()
    assert read_last_words(
        b"[1] Kernel panic - not syncing: no init\n" + b"\n".join(b"R%d" % i for i in range(9)), 3
    ) == (
        "[1] Kernel panic - not syncing: no init",
        "R7",
        "R8",
    )
    assert read_last_words(b"x" * 5000) == ("x" * 157 + "...",)


@given(st.binary(max_size=300))
def test_last_words_of_hostile_guests_are_printable(text: bytes) -> None:
    assert all(line.isprintable() and line for line in read_last_words(text))


FAILED, OFF = Ending(Phase.FAILED, "panic"), Ending(Phase.STOPPED, "off")


@pytest.mark.parametrize(
    ("policy", "ending", "ran_s", "tries", "planned"),
    [
        (Restart.NEVER, FAILED, 5.0, 0, None),
        (Restart.ON_FAILURE, FAILED, 5.0, 0, (1, 1.0)),
        (Restart.ON_FAILURE, FAILED, 5.0, 3, (4, 8.0)),
        (Restart.ON_FAILURE, FAILED, 5.0, 5, None),
        (Restart.ON_FAILURE, FAILED, 700.0, 5, (1, 1.0)),
        (Restart.ON_FAILURE, FAILED, None, 0, None),
        (Restart.ON_FAILURE, OFF, 5.0, 0, None),
        (Restart.ALWAYS, OFF, 5.0, 1, (2, 2.0)),
    ],
)
def test_restarts(
    policy: Restart, ending: Ending, ran_s: float | None, tries: int, planned: tuple[int, float] | None
) -> None:
    assert plan_restart(policy, ending, ran_s=ran_s, tries=tries) == planned
