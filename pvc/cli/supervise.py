# SPDX-License-Identifier: Apache-2.0
"""``pvc supervise``: what the launcher starts on every node (hidden)."""

from __future__ import annotations

import os

import click


@click.command(hidden=True)
@click.pass_context
def supervise(ctx: click.Context) -> None:
    """Run this node's VMs; the cluster comes on standard input, events go to standard output."""
    from pvc.supervisor.main import supervise as run_supervisor

    ctx.exit(run_supervisor(0, 1, os.environ))
