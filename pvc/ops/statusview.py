# SPDX-License-Identifier: Apache-2.0
"""How the status of a cluster's VMs looks: columns that fit, what is not well, and what to do about it. No I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from pvc.model.cluster import ClusterRecord
from pvc.model.netview import Fault
from pvc.model.vm import CloudInit, Phase, VmStatus
from pvc.texts import clean_text

# A guest that has not answered for so long deserves a look, even under emulation.
_LATE_S = 300.0
# Agents of a guest that boots come and go.
_SETTLED_S = 30.0
_SHORTEST_DETAIL = 16
_GAP = 2


@dataclass(frozen=True)
class Trouble:
    """A VM that is not well: why, and the next step."""

    name: str
    reason: str
    step: str


@dataclass(frozen=True)
class Column:
    """``rank``: of columns that do not fit, the highest goes first."""

    title: str
    rank: int
    read: Callable[[VmStatus, float], object]


@dataclass(frozen=True)
class Scene:
    """What is shown. ``ends``: when Slurm ends the job, seconds since the epoch, None: nobody knows; ``faults``: what
    of the cluster's networks is not as it was set up, by node.
    """

    record: ClusterRecord
    vms: Sequence[VmStatus]
    now: float
    ends: float | None = None
    faults: Mapping[str, Sequence[Fault]] = field(default_factory=dict)


def find_trouble(vm: VmStatus, now: float) -> Trouble | None:
    """What is not well with a VM, None: nothing."""
    name, detail = vm.name, vm.detail or "no reason given"
    if vm.phase is Phase.FAILED:
        if not vm.memory_mib:  # nobody speaks for it
            return Trouble(name, detail, "pvc logs --source launcher tells what its node said last")
        if "starts again in" in detail:
            return Trouble(name, detail, "it starts again by itself; pvc start does so at once")
        return Trouble(
            name, detail, vm.hint or f"pvc logs {name} -n 30 shows its console; pvc start {name} boots it again"
        )
    if vm.phase is Phase.PAUSED:
        if "cannot be written" in detail:
            return Trouble(name, detail, f"make room on {vm.node}; it goes on by itself")
        return Trouble(name, detail, f"pvc resume {name} lets it go on")
    if vm.phase is Phase.BOOTING and vm.since is not None and now - vm.since > _LATE_S and vm.ssh_port is not None:
        return Trouble(name, detail, f"pvc console {name} shows what it waits for")
    if _has_lost_agent(vm, now):
        step = f"pvc console {name} shows whether its guest is busy or has hung; pvc reset {name} boots it again"
        return Trouble(name, f"its agent is silent: {vm.agent.problem}", step)
    if vm.cloud_init is not None and (told := describe_cloud_init(vm.cloud_init)):
        return Trouble(name, told, f"pvc exec {name} -- tail -n 50 /var/log/cloud-init-output.log shows more")
    return None


def describe_cloud_init(report: CloudInit) -> str:
    """What cloud-init complains of, in one line; "": of nothing."""
    found, verb = (report.errors, "failed") if report.errors else (report.warnings, "warns")
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return f"cloud-init {verb}: {found[0]}{more}" if found else ""


def _has_lost_agent(vm: VmStatus, now: float) -> bool:
    """Whether an agent that was there does not answer any more."""
    runs = vm.phase in (Phase.BOOTING, Phase.REACHABLE) and vm.since is not None and now - vm.since > _SETTLED_S
    return runs and bool(vm.agent.problem)


def format_age(seconds: float) -> str:
    """As "12s", "3m05s", "2h10m" or "4d03h"."""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}m{rest:02}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours < 100 else f"{hours // 24}d{hours % 24:02}h"


def _since(vm: VmStatus, now: float) -> str | None:
    moment = vm.since if vm.since is not None else vm.reachable or vm.started
    return None if moment is None else format_age(now - moment)


def _up(vm: VmStatus, now: float) -> str | None:
    runs = vm.phase in (Phase.BOOTING, Phase.REACHABLE, Phase.PAUSED)
    return format_age(now - vm.started) if runs and vm.started is not None else None


def _boot(vm: VmStatus, _: float) -> str | None:
    if vm.started is None or vm.reachable is None:
        return None
    return f"{max(0.0, vm.reachable - vm.started):.1f}s"


def _ssh(vm: VmStatus, _: float) -> str | None:
    return None if vm.ssh_host is None or vm.ssh_port is None else f"{vm.ssh_host}:{vm.ssh_port}"


def _agent(vm: VmStatus, _: float) -> str | None:
    """Its release; "silent": it has not answered for a while, "lost": for so long that it counts as gone."""
    if not vm.agent.connected:
        return "lost" if vm.agent.problem else None
    return "silent" if vm.agent.problem else clean_text(vm.agent.release) or "yes"


def _used(vm: VmStatus, _: float) -> str | None:
    return None if vm.load is None else f"{vm.load.memory_used_mib}M"


COLUMNS = (
    Column("VM", 0, lambda vm, _: vm.name),
    Column("NODE", 2, lambda vm, _: vm.node),
    Column("PHASE", 1, lambda vm, _: vm.phase.value),
    Column("SINCE", 3, _since),
    Column("UP", 11, _up),
    Column("BOOT", 12, _boot),
    Column("CPUS", 9, lambda vm, _: vm.cpus),
    Column("LOAD", 6, lambda vm, _: None if vm.load is None else f"{vm.load.load1:.2f}"),
    Column("MEMORY", 7, lambda vm, _: f"{vm.memory_mib}M" if vm.memory_mib else None),
    Column("USED", 8, _used),
    Column("ACCEL", 13, lambda vm, _: vm.accel or None),
    Column("ADDRESS", 4, lambda vm, _: ",".join(vm.addresses) or None),
    Column("SSH", 10, _ssh),
    Column("AGENT", 14, _agent),
)
DETAIL = Column("DETAIL", 5, lambda vm, _: vm.detail or None)


def build_table(scene: Scene, width: int | None) -> list[list[str]]:
    """The header and a row for each VM; with a ``width``, only columns that fit, and a detail that is cut."""
    columns = [*COLUMNS, DETAIL]
    cells = {each.title: [each.title, *(_cell(each.read(vm, scene.now)) for vm in scene.vms)] for each in columns}
    widths = {title: max(map(len, texts)) for title, texts in cells.items()}
    if width is not None:
        full = widths["DETAIL"]
        for least in (_SHORTEST_DETAIL, 0):
            widths["DETAIL"] = min(full, least)
            while columns and sum(widths[each.title] + _GAP for each in columns) - _GAP > width and len(columns) > 1:
                columns.remove(max(columns, key=lambda each: each.rank))
            if DETAIL in columns or least == 0:
                break
        room = width - sum(widths[each.title] + _GAP for each in columns if each is not DETAIL)
        cells["DETAIL"] = [_cut(text, max(1, room)) for text in cells["DETAIL"]]
    kept = [cells[each.title] for each in columns]
    return [[texts[index] for texts in kept] for index in range(len(scene.vms) + 1)]


def format_rows(table: Sequence[Sequence[str]], width: int | None = None) -> list[str]:
    """Columns, left-aligned and two spaces apart; no line is longer than ``width``."""
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    lines = [
        (" " * _GAP).join(text.ljust(size) for text, size in zip(row, widths, strict=True)).rstrip() for row in table
    ]
    return lines if width is None else [_cut(line, width) for line in lines]


def format_headline(scene: Scene) -> str:
    """The cluster in one line."""
    record = scene.record
    counts = Counter(vm.phase for vm in scene.vms)
    phases = ", ".join(f"{counts[phase]} {phase.value}" for phase in Phase if counts[phase])
    nodes = len({vm.node for vm in scene.vms})
    parts = [f"job {record.job_id} ({record.name}, {record.definition})"]
    parts.append(f"{len(scene.vms)} VMs on {nodes} nodes: {phases}" if len(scene.vms) > 1 else phases)
    if scene.ends is not None:
        parts.append(f"ends in {format_age(scene.ends - scene.now)}")
    return " · ".join(parts)


def format_troubles(scene: Scene, most: int | None = None) -> list[str]:
    """A line for each VM that is not well, and what to do; VMs with the same reason share one. Then those of nodes."""
    by_reason: dict[tuple[str, str], list[str]] = {}
    for vm in scene.vms:
        trouble = find_trouble(vm, scene.now)
        if trouble is not None:
            key = (trouble.reason, trouble.step.replace(trouble.name, "{vm}"))
            by_reason.setdefault(key, []).append(trouble.name)
    lines = []
    for (reason, step), names in by_reason.items():
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        lines.append(f"{shown}: {_plain(reason)}; {_plain(step.replace('{vm}', names[0]))}")
    lines += [_describe_faults(node, faults) for node, faults in scene.faults.items() if faults]
    if most is not None and len(lines) > most:
        lines = [*lines[: most - 1], f"and {len(lines) - most + 1} more"]
    return lines


def _describe_faults(node: str, faults: Sequence[Fault]) -> str:
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return f"networks on {node}: {_plain(faults[0].text)}{more}; pvc doctor -j JOB says more"


def render(scene: Scene, width: int, height: int, top: int = 0) -> tuple[list[str], int]:
    """At most ``height`` lines for a terminal, and the first VM's row that is shown, for whoever scrolls from there."""
    width, height = max(width, 10), max(height, 3)
    troubles = [_cut(f"! {line}", width) for line in format_troubles(scene, max(1, height // 4))] if height > 8 else []
    rows = format_rows(build_table(scene, width), width)
    room = height - 2 - len(troubles)
    top = max(0, min(top, len(rows) - 1 - room))
    body = rows[1 + top : 1 + top + room]
    if top or len(body) < len(rows) - 1:
        place = f"{top + 1}-{top + len(body)} of {len(rows) - 1}"
        return [_cut(f"{place} · {format_headline(scene)}", width), rows[0], *body, *troubles], top
    return [_cut(format_headline(scene), width), rows[0], *body, *troubles], top


def _plain(text: str) -> str:
    return clean_text(text)


def _cell(value: object) -> str:
    return "-" if value is None else _plain(str(value))


def _cut(text: str, width: int) -> str:
    text = clean_text(text)
    return text if len(text) <= width else text[: max(0, width - 1)] + "…"
