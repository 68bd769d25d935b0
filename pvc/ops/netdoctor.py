# SPDX-License-Identifier: Apache-2.0
"""``pvc doctor --job``: what is broken in the networks of a running cluster, on which node or between which two."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from pvc import codec
from pvc.errors import HostError
from pvc.model.cluster import ClusterRecord
from pvc.model.netview import CheckReport, Mended, ProbeReport, ProbeShare
from pvc.ops.checkup import Finding, Verdict, fail, ok, warn
from pvc.ops.control import Control, NodeReply
from pvc.ops.jobdir import JobDir

_CHECK_S = 30.0
# Nodes must be at it at the same time; to reach all of them takes about 2 ms each.
_WINDOW_S, _MORE_S_A_NODE, _LONGEST_S = 1.5, 0.004, 8.0
_MAX_PAIRS = 20
_MAX_REMEDIES = 4
Report = TypeVar("Report", CheckReport, ProbeReport)


def examine_cluster(record: ClusterRecord) -> Iterator[Finding]:
    """The nodes compared with the plan, then every path between two of them tried."""
    control = Control(record, JobDir.of(record.job_id))
    checks, findings = _read(CheckReport, control.ask_nodes({"op": "check"}, timeout_s=_CHECK_S))
    yield from findings
    for report in checks:
        if not report.faults:
            yield replace(ok("networks", f"{report.checked} things are as they were set up"), where=report.node)
        for fault in report.faults:
            yield replace(fail("networks", fault.text, fault.fix), where=report.node)
        if report.mended:
            yield replace(_tell_mended(report.mended), where=report.node)
    nodes = [share.node for share in record.placement.shares if share.count]
    if len(nodes) < 2:
        yield ok("paths", "all VMs run on one node")
        return
    window_s = min(_LONGEST_S, _WINDOW_S + _MORE_S_A_NODE * len(nodes))
    request = {"op": "probe", "nonce": secrets.token_hex(8), "window_s": window_s}
    probes, findings = _read(
        ProbeReport, control.ask_nodes(request, timeout_s=window_s + _CHECK_S, at_once=len(nodes)), told=checks
    )
    yield from findings
    yield from judge(probes)


def _tell_mended(mended: Sequence[Mended]) -> Finding:
    last = mended[-1]
    moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(last.at))
    more = f"; and {len(mended) - 1} things before" if len(mended) > 1 else ""
    text = f"put back at {moment}, after somebody undid it: {last.text}{more}"
    return warn("networks", text, "services of the node must leave alone what is pvc's: see pvc-node(8)")


def _read(
    kind: type[Report], replies: Sequence[NodeReply], told: Sequence[CheckReport] | None = None
) -> tuple[list[Report], list[Finding]]:
    """Reports, and what is wrong with nodes that sent none; ``told``: only of nodes that answered before."""
    reports: list[Report] = []
    findings: list[Finding] = []
    for reply in replies:
        error = HostError(reply.error, hint=reply.hint) if reply.error is not None else None
        if error is None:
            try:
                reports.append(codec.from_data(kind, reply.answer["report"]))
                continue
            except (ValueError, KeyError) as err:
                error = HostError(f"its answer is not understood: {err}", hint="do all nodes run one version of pvc?")
        if told is None or reply.node in {each.node for each in told}:
            findings.append(Finding("node", Verdict.FAIL, str(error), error.find_hint(), reply.node))
    return reports, findings


@dataclass(frozen=True)
class _Path:
    """What of the probes from one node to another arrived."""

    source: str
    target: str
    arrived: tuple[int, ...]


def judge(reports: Sequence[ProbeReport]) -> Iterator[Finding]:
    """What the probes say, network by network; nodes that lose everything are named before single paths."""
    names = dict.fromkeys(share.network for report in reports for share in report.networks)
    if not names:
        yield ok("paths", "no network connects two nodes")
    for name in names:
        shares = {report.node: share for report in reports for share in report.networks if share.network == name}
        yield from _judge_network(name, shares)


def _judge_network(name: str, shares: dict[str, ProbeShare]) -> Iterator[Finding]:
    for node, share in shares.items():
        if share.error is not None:
            # A device that is gone or down was named before; a VM that has ended is no fault of a network.
            yield replace(warn("paths", f"network {name}: its paths were not tried: {share.error}"), where=node)
    usable = {node: share for node, share in shares.items() if share.error is None}
    paths = [
        _Path(source, target, share.heard.get(source, ()))
        for target, share in usable.items()
        for source in share.peers
        if source in usable
    ]
    if not paths:
        return
    share = next(iter(usable.values()))
    broken = [path for path in paths if set(path.arrived) != set(share.sizes)]
    if not broken:
        sizes = " and ".join(str(size) for size in share.sizes)
        yield ok("paths", f"network {name}: frames of {sizes} bytes arrive on all {len(paths)} paths")
        return
    yield from _judge_paths(name, shares, paths, broken)


def _judge_paths(
    name: str, shares: dict[str, ProbeShare], paths: list[_Path], broken: list[_Path]
) -> Iterator[Finding]:
    share = shares[paths[0].target]
    dead = [path for path in broken if not path.arrived]
    alive = [path for path in paths if path.arrived]
    carrier = share.carrier
    look = f"as root: nft list ruleset, ip route, tcpdump -ni any {carrier.lower().replace(' ', ' port ')}"
    if not alive and len(paths) > 2:
        text = f"network {name}: nothing arrives on any of {len(paths)} paths: {carrier} is blocked between all nodes"
        known = [told for node, each in shares.items() if (told := _let_in(node, each))]
        yield fail("paths", text, "; ".join(known[:_MAX_REMEDIES]) or f"on the nodes, {look}")
        return
    deaf = [node for node in _lost(dead, paths, "target") if any(path.source == node for path in alive)]
    mute = [node for node in _lost(dead, paths, "source") if any(path.target == node for path in alive)]
    for node in deaf:
        text = f"network {name}: nothing arrives from any other node: {carrier} is blocked on its way in"
        yield replace(fail("paths", text, _let_in(node, shares[node]) or f"on {node}, {look}"), where=node)
    for node in mute:
        text = f"network {name}: nothing that it sends arrives anywhere: {carrier} is blocked on its way out"
        yield replace(fail("paths", text, f"on {node}, {look}"), where=node)
    single = [path for path in broken if path.arrived or (path.target not in deaf and path.source not in mute)]
    for path in single[:_MAX_PAIRS]:
        yield _judge_path(name, shares[path.target], path, look)
    if len(single) > _MAX_PAIRS:
        yield fail("paths", f"network {name}: and {len(single) - _MAX_PAIRS} more paths")


def _let_in(node: str, share: ProbeShare) -> str | None:
    return f"on {node}, as root: {share.remedy}" if share.remedy else None


def _lost(dead: list[_Path], paths: list[_Path], end: str) -> list[str]:
    """Nodes at this end of paths that are all dead; one dead path alone says nothing about either end."""
    found = []
    for node in dict.fromkeys(getattr(path, end) for path in dead):
        count = sum(getattr(path, end) == node for path in paths)
        if count > 1 and count == sum(getattr(path, end) == node for path in dead):
            found.append(node)
    return found


def _judge_path(name: str, share: ProbeShare, path: _Path, look: str) -> Finding:
    where = f"{path.source} -> {path.target}"
    if not path.arrived:
        text = f"network {name}: nothing arrives: {share.carrier} is blocked, or {path.source} has no entry for it"
        return replace(fail("paths", text, _let_in(path.target, share) or f"on both, {look}"), where=where)
    lost = sorted(set(share.sizes) - set(path.arrived))
    text = (
        f"network {name}: {_sizes(lost)}-byte frames are lost, {_sizes(path.arrived)}-byte ones arrive: MTU; "
        f"every device on the way must carry {share.underlay_mtu} bytes"
    )
    fix = f"ip link on both, and the switches; ping -M do -s {share.underlay_mtu - 28} shows where; or a smaller mtu"
    return replace(fail("paths", text, fix), where=where)


def _sizes(sizes: Sequence[int]) -> str:
    return " and ".join(str(size) for size in sizes)
