"""``pvc logs``."""

from __future__ import annotations

import sys
from collections.abc import Callable

import click

from pvc.cli.options import cluster_options
from pvc.ops.logs import SOURCES


@click.command(epilog="Example: pvc logs vm0 --follow")
@click.argument("vms", nargs=-1)
@click.option("-f", "--follow", is_flag=True, help="Go on with what is said from now on, until the VM ends or Ctrl-C.")
@click.option("-s", "--source", type=click.Choice(list(SOURCES)), default="console", show_default=True,
              help="; ".join(f"{name}: {text}" for name, text in SOURCES.items()) + ".")  # fmt: skip
@click.option("-n", "--lines", type=click.IntRange(min=0), metavar="N", help="The last N lines only.")
@click.option("--raw", is_flag=True, help="Every byte as the guest sent it, also what commands terminals.")
@cluster_options
def logs(
    vms: tuple[str, ...],
    follow: bool,
    source: str,
    lines: int | None,
    raw: bool,
    job_id: int | None,
    job_name: str | None,
) -> None:
    """Print what VMs, or the supervisors that run them, have said; also of VMs that failed.

    VMS are names or sets of VMs, such as vm0 or vm[2-5]; default: vm0. Of several, each line begins with the VM's name.
    """
    from pvc.ops.cluster import Cluster
    from pvc.ops.logs import Lines, LogWish, read_launcher_log

    cluster = Cluster.find(job_id, job_name)
    if source == "launcher":
        filters = Lines(_write)
        (_write if raw else filters.put)(read_launcher_log(cluster.control, lines))
        filters.end()
        return
    vms = vms or ("vm0",)
    ranks = cluster.ranks(vms)
    shown: list[Lines] = []

    def writer(rank: int) -> Callable[[bytes], None]:
        if raw and len(ranks) == 1:
            return _write
        shown.append(Lines(_write, f"vm{rank}: " if len(ranks) > 1 else ""))
        return shown[-1].put

    try:
        cluster.read_logs(vms, LogWish(source, lines, follow), writer)
    finally:
        for each in shown:
            each.end()


def _write(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
