# SPDX-License-Identifier: Apache-2.0
"""The command ``pvc cp``."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

import click

from pvc.cli import output
from pvc.cli.options import cluster_options, json_option, user_option
from pvc.cli.progress import format_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pvc.ops.copied import Copied


@click.command("cp")
@user_option
@click.option("-r", "--recursive", is_flag=True, help="As for cp(1); directories are copied whole without it, too.")
@click.option("--links", is_flag=True, help="From VMs, also symbolic links that lead out of what is copied.")
@cluster_options
@json_option
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="SOURCE... DESTINATION", required=True)
@click.pass_context
def copy(
    ctx: click.Context,
    /,
    words: tuple[str, ...],
    user: str,
    recursive: bool,  # noqa: ARG001  # taken because hands type it
    links: bool,
    job_id: int | None,
    job_name: str | None,
    as_json: bool,
) -> None:
    """Copy files and directories to VMs, from them, or between them by their agents, without a network. VMs are written
    vm0:PATH.

    A path without a / at its beginning is below the user's home. To several VMs (vm[0-3]:PATH) the same is copied;
    from several, each gets a directory of its name in DESTINATION. A directory as destination gets the copy in it.
    The guest expands *, ? and [...] in PATH. A - is standard input as SOURCE, and standard output as DESTINATION.
    """
    from pvc.errors import GuestError, UsageError
    from pvc.ops.cluster import Cluster
    from pvc.ops.copied import count_bytes

    if as_json and words[-1] == "-":
        raise UsageError("--json is for standard output, and so is the copy", hint="leave one of them away")
    cluster = Cluster.find(job_id, job_name)
    meter = _Meter(count_bytes(words, len(cluster.vms)))
    with ended_by_signals():
        try:
            done = cluster.copy(*words, user=user, check=False, progress=meter.add, links=links)
        finally:
            meter.end()
    for complaint in done.complaints:
        output.print_error(complaint)
    for note in done.notes:
        output.print_note(note)
    if as_json:
        output.print_json(done.vms)
    else:
        _tell(done.vms)
    ctx.exit(GuestError.exit_code if done.failed else 0)


def _tell(results: Sequence[Copied]) -> None:
    from pvc.ops.vmsets import fold_vms

    groups: dict[tuple[str, str | None], list[int]] = {}
    for result in results:
        for problem in result.problems:
            output.print_error(f"vm{result.rank}: {problem}")
        for note in result.notes:
            output.print_note(f"vm{result.rank}: {note}")
        if result.error is not None:
            groups.setdefault((result.error, result.hint), []).append(result.rank)
    for (text, hint), ranks in groups.items():
        shown = text if len(ranks) == 1 and f"vm{ranks[0]}" in text else f"{fold_vms(ranks)}: {text}"
        output.print_error(shown, hint)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end the block as an exception does: what is not complete goes."""
    old = {number: signal.signal(number, _leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _leave(number: int, frame: FrameType | None) -> None:
    del frame
    for each in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)  # once is enough
    sys.exit(128 + number)


class _Meter:
    """How much was copied, how fast, on a terminal; in one line at the end where it took a while."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._start = self._shown = time.monotonic()
        self._tty = sys.stderr.isatty()
        self._drawn = False

    def add(self, count: int) -> None:
        """So many bytes more."""
        self._done += count
        now = time.monotonic()
        if self._tty and now - self._shown >= 0.2:
            self._shown = now
            self._drawn = True
            output.say(self._text(now), label="\r\033[K", end="", error=True, flush=True)

    def end(self) -> None:
        """Nothing more will come."""
        now = time.monotonic()
        if self._drawn:
            output.say(self._text(now), label="\r\033[K", error=True)
        elif self._done and now - self._start >= 2:
            output.print_note(self._text(now))

    def _text(self, now: float) -> str:
        rate = f"{format_size(int(self._done / max(now - self._start, 1e-3)))}/s"
        if not self._total:
            return f"copied {format_size(self._done)}, {rate}"
        done = min(self._done, self._total)  # names and checksums travel, too
        percent = 100 * done // self._total
        return f"copied {format_size(done)} of {format_size(self._total)} ({percent} %), {rate}"
