# SPDX-License-Identifier: Apache-2.0
"""What root sees of a node and of the site (pvc-node status), and what is done about leftovers (pvc-node repair)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from pvc import __version__
from pvc.cli import output
from pvc.errors import HostError, PvcError
from pvc.texts import clean_text

if TYPE_CHECKING:
    from pvc.model.nodeview import ConfigState, NodeJob, NodeView, SiteCluster, Versions
    from pvc.node.context import Context

_MOST = 20


def print_node(view: NodeView) -> None:
    """The node for people."""
    word = "pvc-node serves" if view.daemon else "pvc-node does not serve: each prolog does its work slowly"
    output.say(f"node {clean_text(view.node)}: {word}; {len(view.jobs)} jobs of pvc")
    if view.drain is not None:
        output.say(
            f"out of service for new clusters since {_moment(view.drain.since)}: {clean_text(view.drain.reason)}"
        )
    if view.daemon is not None:
        print_configuration(view.daemon.configuration)
    if view.daemon is not None and view.daemon.version != __version__:
        output.say(f"the pvc-node that serves is of pvc {clean_text(view.daemon.version)}, and this is {__version__}")
    if view.jobs:
        header = ("JOB", "USER", "SINCE", "STATE", "SLURM", "VMS", "VNIS", "PORTS", "DEVICES")
        output.print_table(header, [_row(job) for job in view.jobs])
    for job in view.jobs:
        texts = [job.text, *(fault.text for fault in job.upkeep.standing)]
        texts += [f"put back, after somebody undid it: {each.text}" for each in job.upkeep.mended[-1:]]
        for text in filter(None, texts):
            output.say(f"job {job.job_id}: {clean_text(text)}")
    for share in view.shares:
        output.say(f"{share.what}: {share.used} of {share.of}{f' {share.unit}' if share.unit else ''}")
    if view.unswept:
        output.say("left over: directories of ended jobs; pvc-node serve removes them")
    left = [str(job.job_id) for job in view.jobs if job.is_left_over]
    if left:
        output.say(f"left over: {_some(left)}; pvc-node repair asks before it removes them")
    for problem in view.problems:
        output.say(f"not known: {clean_text(problem)}", error=True)


def print_configuration(state: ConfigState) -> None:
    """What is in force in the pvc-node that serves, as far as it is not simply what the files say."""
    if state.read_at is None:
        output.say("configuration: none is in force; each job is told why")
    else:
        more = "; its files have changed since, and count after pvc-node reload" if state.changed else ""
        output.say(f"configuration: as of {_moment(state.read_at)}{more}")
    for text in state.kept:
        output.say(clean_text(text))
    if state.refused_at is not None:
        output.say(f"refused at {_moment(state.refused_at)}, so what was in force stays:")
        output.say(state.refusal)


def _row(job: NodeJob) -> tuple[object, ...]:
    slurm = {None: "?", True: "yes", False: "no"}[job.known]
    since = _moment(job.since) if job.since else None
    numbers = [str(each) for each in job.vnis]
    ports = [str(each) for each in job.ports]
    return (
        job.job_id,
        job.user or None,
        since,
        job.phase.value,
        slurm,
        job.vms,
        _some(numbers),
        _some(ports),
        _some(list(job.devices)),
    )


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def print_site(clusters: Sequence[SiteCluster]) -> None:
    """All clusters of the site for people."""
    rows = [
        (each.job_id, each.user or None, each.state.lower() or "not in Slurm", each.elapsed or None,
         ",".join(each.nodes[:_MOST]), _some([str(vni) for vni in each.vnis]))
        for each in clusters
    ]  # fmt: skip
    output.print_table(("JOB", "USER", "STATE", "TIME", "NODES", "VNIS"), rows)


def read_versions(context: Context) -> Versions:
    """The versions of what runs together on this node."""
    from pvc.model.nodeview import Versions
    from pvc.node.orders import tell_daemon
    from pvc.ops.slurmcheck import read_plugins
    from pvc.slurm.job import read_settings
    from pvc.state.ledger import LEDGER

    problems: list[str] = []
    daemon = ""
    plugins: dict[str, str] = {}
    try:
        state = tell_daemon(context.runtime_dir, "state")
        daemon = state.version if state is not None else ""
    except PvcError as err:
        problems.append(str(err))
    try:
        plugins = {str(path): release or "" for path, release in read_plugins(read_settings()).items()}
    except PvcError as err:
        problems.append(str(err))
    return Versions(__version__, daemon, str(LEDGER), plugins, tuple(problems))


def print_versions(versions: Versions) -> None:
    """The versions for people."""
    output.say(f"pvc {versions.pvc}")
    output.say(f"pvc-node that serves: {clean_text(versions.daemon) or 'none'}")
    output.say(f"records: {versions.records}")
    for path, release in versions.plugins.items():
        output.say(clean_text(f"plug-in {path}: {release or 'older, it does not tell'}"))
    for problem in versions.problems:
        output.say(f"not known: {clean_text(problem)}", error=True)


def repair(context: Context, node: str, *, yes: bool) -> bool:
    """Remove what belongs to no job, each after a question; whether all of it is gone."""
    from pvc.node.overview import view_node
    from pvc.node.reclaim import remove_left_over

    view = view_node(context, node)
    if any(job.known is None for job in view.jobs):
        raise HostError(
            "nobody knows which jobs this node has: " + "; ".join(view.problems), hint="is slurmctld there?"
        )
    left = [job for job in view.jobs if job.is_left_over]
    if not left:
        output.say("nothing is left over")
    clean = True
    for job in left:
        what = f": {job.text}" if job.text else ""
        output.say(clean_text(f"job {job.job_id} ({job.phase.value}, Slurm has it no more){what}"))
        if not yes and not click.confirm("Remove what is left of it?"):
            clean = False
            continue
        try:
            output.say(clean_text(f"job {job.job_id}: {remove_left_over(context, node, job.job_id)}"))
        except PvcError as err:
            clean = False
            output.say(clean_text(f"job {job.job_id}: {err}"), error=True)
    return clean


def _some(texts: list[str]) -> str | None:
    more = f" and {len(texts) - 4} more" if len(texts) > 4 else ""
    return ", ".join(texts[:4]) + more if texts else None
