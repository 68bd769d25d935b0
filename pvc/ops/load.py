"""How busy guests are, by their agents: asked by whoever shows it, so no supervisor waits for a guest."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from pvc.errors import PvcError
from pvc.model.vm import GuestLoad, Phase, VmStatus
from pvc.ops.agents import Agents, Collected
from pvc.ops.control import Control
from pvc.ops.loop import Loop

# A guest that needs longer is shown without: it is busy or dead, and nobody shall wait for it.
_LIMIT_S = 1.0
_METRICS = (("op", "metrics"),)


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


def add_loads(control: Control, vms: Sequence[VmStatus], limit_s: float = _LIMIT_S) -> tuple[VmStatus, ...]:
    """The same VMs with ``load`` where the agent told it within ``limit_s``; all are asked at the same time."""
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
    loads = {rank: parse_metrics(stream.result or {}) for rank, stream in streams.items()}
    return tuple(replace(vm, load=loads.get(vm.rank)) for vm in vms)


def is_asked(vm: VmStatus) -> bool:
    """Whether its agent can answer: it runs, and its agent is not known to be silent."""
    return vm.agent.connected and not vm.agent.problem and vm.phase in (Phase.BOOTING, Phase.REACHABLE)
