"""Waiting for VMs to be ready, in the sense that the caller means."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from pvc.errors import GuestError, PvcError, UsageError
from pvc.model.vm import ENDED, Phase, VmStatus
from pvc.ops.control import Control, in_parallel
from pvc.ops.execute import Command
from pvc.ops.remote import check_port, run_command
from pvc.ops.status import has_no_ssh, read_status

_POLL_S = 1.0
_TRY_S = 20.0
_AT_ONCE = 16
# A supervisor may be too busy to answer for a while.
_PATIENCE_S = 30.0
_SHOWN = 5


class Goal(StrEnum):
    """What a VM shall have."""

    SSH = "ssh"
    AGENT = "agent"
    CLOUD_INIT = "cloud-init"
    PORT = "port"
    COMMAND = "cmd"


@dataclass(frozen=True)
class Condition:
    """``text``: the number of the port, or the line for the guest's shell."""

    goal: Goal
    text: str = ""

    def __str__(self) -> str:
        return f"{self.goal}:{self.text}" if self.text else self.goal.value


@dataclass(frozen=True)
class Lack:
    """What a VM lacks, in words; ``final``: it will never have it by itself."""

    text: str
    final: bool = False


@dataclass
class Watch:
    """What is known of each VM while somebody waits."""

    lacks: dict[int, Lack] = field(default_factory=dict)
    silent_since: dict[int, float] = field(default_factory=dict)


Progress = Callable[[Mapping[int, Lack]], None]


def parse_conditions(texts: Sequence[str]) -> tuple[Condition, ...]:
    """Of "ssh", "agent", "cloud-init", "port:80", "cmd:test -e /ready".

    :raise UsageError: something else.
    """
    return tuple(_parse(text) for text in texts)


def _parse(text: str) -> Condition:
    name, colon, rest = text.partition(":")
    if name == Goal.PORT and rest.isascii() and rest.isdecimal() and 0 < int(rest[:6]) < 65536:
        return Condition(Goal.PORT, str(int(rest)))
    if name == Goal.COMMAND and rest.strip():
        return Condition(Goal.COMMAND, rest)
    if name in (Goal.SSH, Goal.AGENT, Goal.CLOUD_INIT) and not colon:
        return Condition(Goal(name))
    raise UsageError(
        f"{text!r} is nothing to wait for", hint="ssh, agent, cloud-init, port:NUMBER or cmd:COMMAND, as port:80"
    )


def wait_for(
    control: Control,
    ranks: Sequence[int],
    conditions: Sequence[Condition],
    timeout_s: float,
    *,
    on_progress: Progress | None = None,
) -> None:
    """Until each of these VMs meets all conditions. ``on_progress`` is told what each still lacks, after each look.

    :raise GuestError: one never will, or is not in time; it says what each lacks.
    """
    deadline = time.monotonic() + timeout_s
    watch = Watch({rank: Lack("nothing is known of it yet") for rank in ranks})
    while True:
        vms = read_status(control, sorted(watch.lacks), timeout_s=15.0)
        found = in_parallel(lambda vm: (vm.rank, _find_lack(control, vm, conditions, watch)), vms, _AT_ONCE)
        watch.lacks = {rank: lack for rank, lack in found if lack is not None}
        if on_progress is not None:
            on_progress(watch.lacks)
        if not watch.lacks:
            return
        late = time.monotonic() >= deadline
        if late or all(lack.final for lack in watch.lacks.values()):
            raise GuestError(
                _explain(watch.lacks) + (f" (after {timeout_s:g} s)" if late else ""),
                hint=f"look at one: pvc logs vm{min(watch.lacks)} -n 20",
            )
        time.sleep(min(_POLL_S, max(0.0, deadline - time.monotonic())))


def _find_lack(control: Control, vm: VmStatus, conditions: Sequence[Condition], watch: Watch) -> Lack | None:
    detail = f" ({vm.detail})" if vm.detail else ""
    if vm.phase in ENDED:
        if not vm.memory_mib:  # its supervisor is silent
            since = watch.silent_since.setdefault(vm.rank, time.monotonic())
            gone = time.monotonic() - since > _PATIENCE_S
            return Lack(f"{'has failed' if gone else 'is out of reach'}{detail}", gone)
        verb = "has failed" if vm.phase is Phase.FAILED else "is stopped"
        return Lack(f"{verb}{detail}", "starts again" not in vm.detail)
    watch.silent_since.pop(vm.rank, None)
    if vm.phase is Phase.PAUSED:
        return Lack(f"is paused{detail}", "cannot be written" not in vm.detail)
    if vm.phase in (Phase.WAITING, Phase.NETWORK):
        return Lack(f"is not started yet ({vm.phase.value})")
    for condition in conditions:
        lack = _check(control, vm, condition)
        if lack is not None:
            return lack
    return None


def _check(control: Control, vm: VmStatus, condition: Condition) -> Lack | None:
    """What the running VM lacks of a condition."""
    if condition.goal is Goal.SSH:
        if has_no_ssh(vm):
            return Lack("runs, but no port leads to its ssh", final=True)
        return None if vm.phase is Phase.REACHABLE else Lack(f"has no ssh yet ({vm.detail or vm.phase.value})")
    if not vm.agent.connected:
        return Lack(f"has no agent yet{f' ({vm.agent.problem})' if vm.agent.problem else ''}")
    if condition.goal is Goal.AGENT:
        return None
    try:
        if condition.goal is Goal.PORT:
            check_port(control, vm.rank, int(condition.text))
            return None
        return _check_command(control, vm, condition)
    except PvcError as err:
        what = f"nothing answers at its port {condition.text}" if condition.goal is Goal.PORT else f"{condition} failed"
        return Lack(f"{what} yet ({err})")


# `cloud-init status` ends with 0 when it is done or off, 1 after a failure, 2 (23.4 and later) with warnings.
# It is Python, seconds of an emulated guest's processor: while cloud-init itself runs, it is left alone.
_CLOUD_INIT = (
    "command -v cloud-init >/dev/null || { echo none; exit 3; }; "
    "[ -e /run/cloud-init/result.json ] || ! pgrep -x cloud-init >/dev/null || { echo running; exit; }; "
    "cloud-init status"
)


def _check_command(control: Control, vm: VmStatus, condition: Condition) -> Lack | None:
    line = _CLOUD_INIT if condition.goal is Goal.CLOUD_INIT else condition.text
    (result,) = run_command(control, (vm.rank,), Command(("sh", "-c", line), stdin=False), _TRY_S)
    if condition.goal is Goal.COMMAND:
        return None if result.code == 0 else Lack(f"{condition} ended with {result.code}")
    said = result.text.removeprefix("status: ").splitlines()[:1]
    word = said[0] if said else ""
    if word in ("done", "disabled"):
        return None
    if word == "none":
        return Lack("has no cloud-init", final=True)
    return Lack(f"cloud-init says {word or 'nothing'!r}", final=word == "error")


def _explain(lacks: Mapping[int, Lack]) -> str:
    """One text for VMs that lack the same."""
    by_text: dict[str, list[int]] = {}
    for rank, lack in sorted(lacks.items()):
        by_text.setdefault(lack.text, []).append(rank)
    parts = []
    for text, ranks in list(by_text.items())[:_SHOWN]:
        names = ", ".join(f"vm{rank}" for rank in ranks[:_SHOWN])
        more = f" and {len(ranks) - _SHOWN} more" if len(ranks) > _SHOWN else ""
        parts.append(f"{names}{more}: {text}")
    if len(by_text) > _SHOWN:
        parts.append(f"and {len(by_text) - _SHOWN} reasons more")
    return "; ".join(parts)


def describe(lacks: Mapping[int, Lack], total: int) -> str:
    """How far all are, in one line."""
    if not lacks:
        return f"{total} of {total} ready"
    return f"{total - len(lacks)} of {total} ready; {_explain(lacks)}"
