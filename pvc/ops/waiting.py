# SPDX-License-Identifier: Apache-2.0
"""Waiting for VMs to be ready, in the sense that the caller means."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from pvc.errors import EndedError, GuestError, GuestTimeoutError, PvcError, SuspendedError, UsageError
from pvc.model.vm import ENDED, Phase, VmStatus
from pvc.ops.control import Control, in_parallel
from pvc.ops.execute import Command
from pvc.ops.load import parse_cloud_init
from pvc.ops.remote import check_agent, check_port, check_ssh, run_command
from pvc.ops.status import has_no_ssh, read_status
from pvc.ops.statusview import describe_cloud_init

LOG = logging.getLogger(__name__)

_POLL_S = 1.0
_TRY_S, _LEAST_TRY_S = 20.0, 5.0
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
    """What is known of each VM while somebody waits; ``try_s``: how long a guest that is asked may take."""

    lacks: dict[int, Lack] = field(default_factory=dict)
    silent_since: dict[int, float] = field(default_factory=dict)
    try_s: float = _TRY_S


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

    :raise GuestError: those that do not never will; it says what each lacks.
    :raise GuestTimeoutError: one is not in time; ``gathered`` says of each late one what it lacks, by its name.
    :raise EndedError: the cluster has ended.
    """
    deadline = time.monotonic() + timeout_s
    watch = Watch({rank: Lack("nothing is known of it yet") for rank in ranks})
    while True:
        vms = read_status(control, sorted(watch.lacks), timeout_s=15.0)
        watch.try_s = min(_TRY_S, max(_LEAST_TRY_S, deadline - time.monotonic()))
        found = in_parallel(lambda vm: (vm.rank, _find_lack(control, vm, conditions, watch)), vms, _AT_ONCE)
        watch.lacks = {rank: lack for rank, lack in found if lack is not None}
        if on_progress is not None:
            on_progress(watch.lacks)
        if not watch.lacks:
            return
        late = time.monotonic() >= deadline
        if late or all(lack.final for lack in watch.lacks.values()):
            text, hint = _explain(watch.lacks), f"look at one: pvc logs vm{min(watch.lacks)} -n 20"
            if not late:
                raise GuestError(text, hint=hint)
            gathered = {f"vm{rank}": lack.text for rank, lack in sorted(watch.lacks.items())}
            raise GuestTimeoutError(f"{text} (after {timeout_s:g} s)", hint=hint, gathered=gathered)
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
        lack = _check(control, vm, condition, watch.try_s)
        if lack is not None:
            return lack
    return None


def _check(control: Control, vm: VmStatus, condition: Condition, try_s: float) -> Lack | None:
    """What the running VM lacks of a condition."""
    if condition.goal is Goal.SSH:
        if has_no_ssh(vm):
            return Lack("runs, but no port leads to its ssh", final=True)
        if vm.phase is not Phase.REACHABLE:
            return Lack(f"has no ssh yet ({vm.detail or vm.phase.value})")
        # That it answered once is what the phase says; a guest may have hung since.
        return _ask(lambda: check_ssh(control, vm.rank, try_s), "does not answer ssh any more")
    if not vm.agent.connected:
        return Lack(f"has no agent yet{f' ({vm.agent.problem})' if vm.agent.problem else ''}")
    if vm.agent.problem:
        return Lack(f"has a silent agent ({vm.agent.problem})")
    if condition.goal is Goal.AGENT:
        return _ask(lambda: check_agent(control, vm.rank, try_s), "has an agent that does not answer")
    try:
        if condition.goal is Goal.PORT:
            check_port(control, vm.rank, int(condition.text))
            return None
        return _check_command(control, vm, condition)
    except (EndedError, SuspendedError):
        raise
    except PvcError as err:
        what = f"nothing answers at its port {condition.text}" if condition.goal is Goal.PORT else f"{condition} failed"
        return Lack(f"{what} yet ({err})")


def _ask(check: Callable[[], None], what: str) -> Lack | None:
    try:
        check()
    except PvcError as err:
        return Lack(f"{what} ({err})")
    return None


# `cloud-init status` ends with 0 when it is done or off, 1 after a failure, 2 (23.4 and later) with warnings.
# It is Python, seconds of an emulated guest's processor: while cloud-init itself runs, it is left alone.
_CLOUD_INIT = (
    "command -v cloud-init >/dev/null || { echo none; exit 3; }; "
    "[ -e /run/cloud-init/result.json ] || ! pgrep -x cloud-init >/dev/null || { echo running; exit; }; "
    "cloud-init status 2>/dev/null | head -n 1; cat /run/cloud-init/status.json 2>/dev/null"
)


def _check_command(control: Control, vm: VmStatus, condition: Condition) -> Lack | None:
    line = _CLOUD_INIT if condition.goal is Goal.CLOUD_INIT else condition.text
    (result,) = run_command(control, (vm.rank,), Command(("sh", "-c", line), stdin=False), _TRY_S)
    if condition.goal is Goal.COMMAND:
        return None if result.code == 0 else Lack(f"{condition} ended with {result.code}")
    said, _, report = result.text.removeprefix("status: ").partition("\n")
    word = said.strip()
    if word == "none":
        return Lack("has no cloud-init", final=True)
    told = describe_cloud_init(parse_cloud_init(report)) if report.strip() else ""
    if word in ("done", "disabled"):
        if told:
            LOG.warning("%s: %s", vm.name, told)
        return None
    what = told if word == "error" and told else f"cloud-init says {word or 'nothing'!r}"
    return Lack(what, final=word == "error")


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
