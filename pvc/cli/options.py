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
    named = click.option(
        "-J", "--name", "job_name", metavar="NAME", help="The running cluster whose job has this name."
    )
    numbered = click.option(
        "-j",
        "--job",
        "job_id",
        metavar="ID",
        type=click.IntRange(min=1),
        help="The cluster of this job. Default: SLURM_JOB_ID, else the only running cluster.",
    )
    return numbered(named(function))
