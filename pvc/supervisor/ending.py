"""What it means that QEMU ended: pure, from the exit status and what QMP said before."""

from __future__ import annotations

import signal
from dataclasses import dataclass

from pvc.model.vm import Phase


@dataclass(frozen=True)
class Ending:
    """STOPPED or FAILED, and why."""

    phase: Phase
    detail: str
    hint: str | None = None


def explain_end(status: int, *, requested: bool, reason: str | None, stderr: str, memory_mib: int) -> Ending:
    """Why a VM ended.

    ``status`` is QEMU's exit code or minus a signal; ``reason`` that of its last SHUTDOWN event
    (qapi/run-state.json, ShutdownCause), None when there was none.
    """
    if requested:
        return Ending(Phase.STOPPED, "stopped on request")
    if reason == "guest-panic":
        return Ending(Phase.FAILED, "the guest's kernel panicked", "see its last words with 'pvc console --log'")
    if reason in {"guest-shutdown", "guest-reset"}:
        return Ending(Phase.STOPPED, "the guest powered itself off")
    if reason == "host-signal":
        return Ending(Phase.STOPPED, "QEMU was ended by a signal from outside")
    if reason is not None and status == 0:
        return Ending(Phase.STOPPED, f"QEMU ended ({reason})")
    said = f": {stderr}" if stderr else ""
    if status >= 0:
        return Ending(Phase.FAILED, f"QEMU ended with exit code {status}{said}")
    name = signal.Signals(-status).name if -status in {int(each) for each in signal.Signals} else f"signal {-status}"
    hint = None
    if -status == signal.SIGKILL:
        hint = f"perhaps the job's memory limit: its guest has {memory_mib} MiB; ask for more with -m"
    return Ending(Phase.FAILED, f"QEMU was killed by {name}{said}", hint)
