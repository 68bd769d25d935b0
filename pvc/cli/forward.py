# SPDX-License-Identifier: Apache-2.0
"""``pvc forward``."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from pvc.cli import output
from pvc.cli.options import cluster_options, json_option
from pvc.errors import PvcError, UsageError

if TYPE_CHECKING:
    from pvc.model.forward import Forward
    from pvc.ops.forward import Forwarder
    from pvc.ops.jobdir import JobDir


@click.command(epilog="Example: pvc forward vm0:6443 8080:vm2:80")
@click.argument("forwards", metavar="[PORT:]VM:[HOST:]PORT...", nargs=-1)
@click.option("--udp", is_flag=True, help="Datagrams instead of connections.")
@click.option("-R", "--reverse", is_flag=True, help="The other way: the VM's port leads to this machine's.")
@click.option("-b", "--background", is_flag=True, help="Return once it works; it ends with the cluster, or by --stop.")
@click.option("-l", "--list", "show", is_flag=True, help="List what is forwarded for the cluster.")
@click.option("--stop", is_flag=True, help="End what the words name: VM, port, VM:PORT or process; without words all.")
@click.option("--ready-fd", type=int, hidden=True)
@cluster_options
@json_option
def forward(
    forwards: tuple[str, ...],
    udp: bool,
    reverse: bool,
    background: bool,
    show: bool,
    stop: bool,
    ready_fd: int | None,
    job_id: int | None,
    job_name: str | None,
    as_json: bool,
) -> None:
    """Let ports of this machine's loopback lead to ports of VMs, until Ctrl-C.

    vm0:6443 is port 6443 of both, 8080:vm2:80 port 8080 here and 80 in vm2, 0:vm2:80 any free port here, and
    2375:vm0:/run/docker.sock a socket in the VM. The way needs neither the VM's network nor an open port of a node,
    but the agent in the guest. Programs of other users are refused.
    """
    from pvc.ops import forwards as running
    from pvc.ops.cluster import Cluster

    cluster = Cluster.find(job_id, job_name)
    jobdir = cluster.jobdir
    if show:
        _list(jobdir, as_json)
    elif stop:
        for each in running.stop(jobdir, forwards):
            output.print_note(f"stopped {', '.join(map(str, each.forwards))}")
    elif not forwards:
        raise UsageError("which ports?", hint="for instance: pvc forward vm0:6443 8080:vm2:80")
    else:
        forwarder = cluster.forwarder(forwards, udp=udp, reverse=reverse, tell=output.print_note)
        if background:
            options = [
                *(["--udp"] if udp else []),
                *(["--reverse"] if reverse else []),
                "-j",
                str(cluster.job_id),
            ]
            _, ready = running.start_background([*options, "--", *forwards], jobdir.path / "forward.log")
            _tell(ready, as_json)
        else:
            _run(forwarder, jobdir, ready_fd, as_json)


def _run(forwarder: Forwarder, jobdir: JobDir, ready_fd: int | None, as_json: bool) -> None:
    """Serve until the end; ``ready_fd``: who waits for the word that it works."""
    import asyncio
    from contextlib import ExitStack

    from pvc.ops import forwards as running

    told = False
    with ExitStack() as stack:

        def on_ready(ready: Sequence[Forward]) -> None:
            nonlocal told
            told = True
            stack.enter_context(running.registered(jobdir, ready))
            if ready_fd is None:
                _tell(ready, as_json)
            else:
                running.report(ready_fd, ready)

        async def serve() -> None:
            task = asyncio.current_task()
            assert task is not None
            for number in (signal.SIGTERM, signal.SIGHUP):
                asyncio.get_running_loop().add_signal_handler(number, task.cancel)
            await forwarder.run(on_ready)

        try:
            asyncio.run(serve())
        except asyncio.CancelledError:
            return
        except PvcError as err:
            if ready_fd is not None and not told:
                running.report(ready_fd, (), err)
            raise


def _tell(ready: Sequence[Forward], as_json: bool) -> None:
    if as_json:
        output.print_json(ready)
    else:
        output.say("\n".join(map(str, ready)))
    sys.stdout.flush()


def _list(jobdir: JobDir, as_json: bool) -> None:
    from pvc.ops.forwards import list_running
    from pvc.ops.statusview import format_age

    found = list_running(jobdir)
    if as_json:
        output.print_json(found)
        return
    rows = [
        [each.pid, each.host, format_age(time.time() - each.started), str(one)]
        for each in found
        for one in each.forwards
    ]
    if rows:
        output.print_table(["PID", "HOST", "SINCE", "FORWARD"], rows)
    else:
        output.print_note("nothing is forwarded")
