# SPDX-License-Identifier: Apache-2.0
"""``pvc doctor``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from pvc.cli import output
from pvc.cli.options import json_option, narrowing_options
from pvc.errors import HostError
from pvc.texts import clean_text

if TYPE_CHECKING:
    from pvc.ops.checkup import Finding

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


@click.command()
@click.option("--node", is_flag=True, help="Examine this machine as a compute node; as root, more is seen.")
@click.option("--nodelist", metavar="NODES", help="Examine these nodes, each in a small job of yours, as n[1-3].")
@narrowing_options("Examine the networks of")
@json_option
@click.pass_context
def doctor(
    ctx: click.Context, /, node: bool, nodelist: str | None, job_id: int | None, job_name: str | None, as_json: bool
) -> None:
    """Say what this machine, your set-up, a node or a running cluster lacks, and how to fix it.

    With --job or --name, the networks of that running cluster are examined: each of its nodes compares devices,
    forwarding entries, rules and name server with what was set up, and all nodes send each other small and full-size
    frames for two seconds, so that a path that is blocked or too narrow is named.

    Exit code 6 when something is missing without which clusters do not work.
    """
    from pvc.ops.checkup import has_failure

    if job_id is not None or job_name is not None:
        from pvc.ops.netdoctor import examine_cluster
        from pvc.ops.registry import find_cluster

        findings = list(examine_cluster(find_cluster(job_id, job_name)))
    elif node:
        from pvc.ops.nodecheck import examine_node

        findings = list(examine_node())
    else:
        from pvc.ops.doctor import examine_nodes, examine_user
        from pvc.ops.launch import find_pvc

        findings = list(examine_user())
        if nodelist is not None:
            findings += examine_nodes(nodelist, find_pvc())
    if as_json:
        output.print_json(findings)
    else:
        _print(findings)
    ctx.exit(HostError.exit_code if has_failure(findings) else 0)


def _print(findings: Sequence[Finding]) -> None:
    width = max(len(_label(finding)) for finding in findings)
    for finding in findings:
        verdict = output.paint(f"{finding.verdict.value:<4}", _COLOURS[finding.verdict.value], sys.stdout)
        output.say(f"  {_label(finding):<{width}}  {clean_text(finding.text)}", label=verdict)
        if finding.fix:
            fix = output.paint("fix:", "cyan", sys.stdout)
            output.say(clean_text(finding.fix), label=f"{'':<{width + 8}}{fix} ")


def _label(finding: Finding) -> str:
    return clean_text(f"{finding.where} {finding.check}" if finding.where else finding.check)
