from __future__ import annotations

import pytest

from pvc.model.vm import Phase
from pvc.supervisor.ending import Ending, explain_end


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
