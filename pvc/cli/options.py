"""Options that many commands share, so that they are spelled and explained alike everywhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

Function = TypeVar("Function", bound=Callable[..., Any])


def json_option(function: Function) -> Function:
    """Add ``--json`` as the parameter ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")(function)


def cluster_options(function: Function) -> Function:
    """Add ``--job/-j`` and ``--name/-J``, which choose a running cluster, as ``job_id`` and ``job_name``."""
    return _choose(
        "The cluster of this job. Default: SLURM_JOB_ID, else the only running cluster.",
        "The running cluster whose job has this name.",
    )(function)


def narrowing_options(what: str) -> Callable[[Function], Function]:
    """The same for a command that does without a cluster, too; ``what`` it does with one, as "Examine"."""
    return _choose(f"{what} the running cluster of this job.", f"{what} the running cluster whose job has this name.")


def _choose(by_job: str, by_name: str) -> Callable[[Function], Function]:
    named = click.option("-J", "--name", "job_name", metavar="NAME", help=by_name)
    numbered = click.option("-j", "--job", "job_id", metavar="ID", type=click.IntRange(min=1), help=by_job)
    return lambda function: numbered(named(function))
