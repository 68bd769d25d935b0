# SPDX-License-Identifier: Apache-2.0
"""What it means that QEMU ended: pure, from the exit status and what QMP said before."""

from __future__ import annotations

import signal
from dataclasses import dataclass

from pvc.model.vm import Phase, Restart

# A guest that fails again and again is not started for ever; one that ran this long has begun anew.
_TRIES = 5
_LONG_S = 600.0
_LONGEST_PAUSE_S = 60.0


@dataclass(frozen=True)
class Ending:
    """STOPPED or FAILED, and why."""

    phase: Phase
    detail: str
    hint: str | None = None


def explain_end(
    status: int, *, requested: bool, reason: str | None, stderr: str, memory_mib: int, grace_s: float = 0.0
) -> Ending:
    """Why a VM ended.

    ``status`` is QEMU's exit code or minus a signal; ``reason`` that of its last SHUTDOWN event
    (qapi/run-state.json, ShutdownCause), None when there was none; ``grace_s`` is the time that its guest
    had when the end was requested.
    """
    if requested and grace_s > 0:
        if reason == "guest-shutdown":
            return Ending(Phase.STOPPED, "stopped on request, its guest powered down")
        return Ending(Phase.STOPPED, f"stopped on request, switched off: no power-down within {grace_s:g} s")
    if requested:
        return Ending(Phase.STOPPED, "stopped on request")
    if reason == "guest-panic":
        return Ending(Phase.FAILED, "the guest's kernel panicked", "all that it said: pvc console --log")
    if reason in {"guest-shutdown", "guest-reset"}:
        return Ending(Phase.STOPPED, "the guest powered itself off")
    if reason == "host-signal":
        return Ending(Phase.STOPPED, "QEMU was ended by a signal from outside")
    if reason is not None and status == 0:
        return Ending(Phase.STOPPED, f"QEMU ended ({reason})")
    said = f": {stderr}" if stderr else ""
    hint = None
    if -status == signal.SIGKILL:
        hint = f"perhaps the job's memory limit: its guest has {memory_mib} MiB; ask for more with -m"
    return Ending(Phase.FAILED, f"QEMU {describe_exit(status)}{said}", hint)


def describe_exit(status: int) -> str:
    """What became of a process: ``status`` is its exit code or minus a signal."""
    if status >= 0:
        return f"ended with exit code {status}"
    known = {int(each) for each in signal.Signals}
    return f"was killed by {signal.Signals(-status).name if -status in known else f'signal {-status}'}"


def plan_restart(policy: Restart, ending: Ending, *, ran_s: float | None, tries: int) -> tuple[int, float] | None:
    """Whether a VM that ended by itself starts again: which try that is, and after how many seconds.

    ``ran_s`` None: it never ran, and what kept it from that is still there. ``tries``: starts of this kind so far.
    """
    if ran_s is None or policy is Restart.NEVER or (policy is Restart.ON_FAILURE and ending.phase is not Phase.FAILED):
        return None
    tries = 0 if ran_s >= _LONG_S else tries
    if tries >= _TRIES:
        return None
    return tries + 1, min(2.0**tries, _LONGEST_PAUSE_S)
