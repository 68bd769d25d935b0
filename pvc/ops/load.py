# SPDX-License-Identifier: Apache-2.0
"""How busy guests are, by their agents: asked by whoever shows it, so no supervisor waits for a guest."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from pvc import codec
from pvc.errors import PvcError
from pvc.model.vm import CloudInit, GuestLoad, Phase, VmStatus
from pvc.ops.agents import Agents, Collected
from pvc.ops.control import Control
from pvc.ops.loop import Loop
from pvc.texts import clean_text

# A guest that needs longer is shown without: it is busy or dead, and nobody shall wait for it.
_LIMIT_S = 1.0
_METRICS = (("op", "metrics"), ("with", "cloud-init"))
_MOST_MESSAGES, _LONGEST_MESSAGE = 5, 300
_UNREADABLE = "its own report is not understood: /run/cloud-init/status.json"


def parse_metrics(words: Mapping[str, str]) -> GuestLoad | None:
    """Of the answer that pvc-agent(7) describes, None: it is none. A guest may write anything there."""
    try:
        load = float(words["load1"])
        total, available, uptime = (int(float(words[key])) for key in ("memory-total", "memory-available", "uptime"))
    except (KeyError, ValueError, OverflowError):
        return None
    if not (math.isfinite(load) and 0 <= load < 1e6 and 0 <= available <= total < 1 << 50 and 0 <= uptime < 1 << 40):
        return None
    return GuestLoad(load, (total - available) >> 20, total >> 20, uptime)


def parse_cloud_init(text: str) -> CloudInit:
    """Of what cloud-init writes to status.json (its ``v1``); nothing of it is believed.

    Before 23.4 it has no ``recoverable_errors``, its warnings are in its log alone.
    """
    try:
        found = codec.read_json(text.encode())
    except ValueError:
        return CloudInit(False, (), (_UNREADABLE,))
    report = found.get("v1") if isinstance(found, dict) else None
    if not isinstance(report, dict):
        return CloudInit(False, (), (_UNREADABLE,))
    errors: list[str] = []
    warnings: list[str] = []
    for stage in report.values():
        if isinstance(stage, dict):
            errors += _messages(stage.get("errors"))
            recovered = stage.get("recoverable_errors")
            if isinstance(recovered, dict):
                for level in "CRITICAL", "ERROR", "WARNING":
                    warnings += _messages(recovered.get(level))
    last = report.get("modules-final")
    finished = not report.get("stage") and isinstance(last, dict) and bool(last.get("finished"))
    # One message may be there for each stage.
    return CloudInit(finished, *(tuple(dict.fromkeys(each))[:_MOST_MESSAGES] for each in (errors, warnings)))


def _messages(value: object) -> list[str]:
    if not isinstance(value, list):
        return []
    return [clean_text(each[:_LONGEST_MESSAGE]) for each in value if isinstance(each, str) and each]


def add_loads(control: Control, vms: Sequence[VmStatus], limit_s: float = _LIMIT_S) -> tuple[VmStatus, ...]:
    """The same VMs with ``load`` and ``cloud_init`` where the agent told them within ``limit_s``.

    All are asked at the same time.
    """
    asked = [vm.rank for vm in vms if is_asked(vm)]
    if not asked:
        return tuple(vms)
    streams = {rank: Collected(0) for rank in asked}
    loop = Loop((), lambda _: None)
    agents = Agents(control, loop, len(asked), connect_s=limit_s)
    try:
        failed = agents.connect(asked)
        for vm in vms:
            if vm.rank in streams and vm.node not in failed:
                try:
                    agents.open(vm.rank, _METRICS, streams[vm.rank])
                except PvcError:  # lost at once
                    failed[vm.node] = PvcError("lost")
        waiting = [streams[vm.rank] for vm in vms if vm.rank in streams and vm.node not in failed]
        loop.run_until(lambda: all(stream.closed for stream in waiting), timeout_s=limit_s)
    finally:
        agents.close()
        loop.close()
    return tuple(_add(vm, streams[vm.rank].result or {}) if vm.rank in streams else vm for vm in vms)


def _add(vm: VmStatus, words: Mapping[str, str]) -> VmStatus:
    report = words.get("cloud-init")
    return replace(vm, load=parse_metrics(words), cloud_init=None if report is None else parse_cloud_init(report))


def is_asked(vm: VmStatus) -> bool:
    """Whether its agent can answer: it runs, and its agent is not known to be silent."""
    return vm.agent.connected and not vm.agent.problem and vm.phase in (Phase.BOOTING, Phase.REACHABLE)
