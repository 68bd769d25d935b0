# SPDX-License-Identifier: Apache-2.0
"""Options that many commands share, so that they are spelled and explained alike everywhere."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from pvc.parse import expand_home, parse_duration

Function = TypeVar("Function", bound=Callable[..., Any])


class HostPath(click.Path):
    """A path of this host. A shell leaves the ~ of --option=~/file to the program."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """As click asks for it."""
        return super().convert(expand_home(os.fspath(value), os.path.expanduser("~")), param, ctx)


def time_option(*names: str, **settings: Any) -> Callable[[Function], Function]:
    """Add an option that takes a time, such as 90s, 10m or 1.5h, as seconds; a number alone is of seconds."""
    return click.option(*names, type=_parse_time, metavar="TIME", **settings)


def _parse_time(text: str | float) -> float:
    if isinstance(text, float):
        return text
    try:
        return parse_duration(text)
    except ValueError as err:
        raise click.BadParameter(str(err)) from None


class _JobNumber(click.ParamType):  # type: ignore[type-arg]  # not generic before click 8.4
    """A job by any number that Slurm has for it: 24, 24_1 of an array, 24+1 of a heterogeneous job."""

    name = "job"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The job's own number.

        :raise JobError: Slurm has no such job.
        """
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"0*([1-9][0-9]{0,9})([_+][0-9]{1,9})?", value, re.ASCII)
        if found is None:
            self.fail(f"{value!r} is no number of a job, such as 24, 24_1 or 24+1", param, ctx)
        if found[2] is None:
            return int(found[1])
        from pvc.slurm.job import find_job_id

        return find_job_id(found[1] + found[2])


def json_option(function: Function) -> Function:
    """Add ``--json`` as the parameter ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")(function)


def quiet_option(function: Function) -> Function:
    """Add ``--quiet``."""
    return click.option("-Q", "--quiet", is_flag=True, help="Say nothing but errors.")(function)


def user_option(function: Function) -> Function:
    """Add ``--user``, of guests."""
    option = click.option(
        "-u", "--user", default="root", show_default=True, metavar="USER", help="As this user of the guest."
    )
    return option(function)


def raw_option(function: Function) -> Function:
    """Add ``--raw``."""
    return click.option("--raw", is_flag=True, help="Every byte as the guest sent it, also what commands terminals.")(
        function
    )


def guest_options(function: Function) -> Function:
    """Add ``--image``, ``--user-data`` and ``--mount``, which go before what templates say."""
    decorators = [
        click.option("--image", "images", multiple=True, metavar="[TEMPLATE=]IMAGE",
                     help="Boot this image instead of the template's."),
        click.option("--user-data", metavar="FILE",
                     help="Give the guests this user-data: cloud-config, a script, any form of cloud-init."),
        click.option("--mount", "mounts", multiple=True, metavar="HOSTDIR:GUESTDIR[:ro][:type=9p|virtiofs]",
                     help="Give the guests a directory of their nodes, by 9p or virtio-fs."),
    ]  # fmt: skip
    for decorator in reversed(decorators):
        function = decorator(function)
    return function


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
    numbered = click.option("-j", "--job", "job_id", metavar="ID", type=_JobNumber(), help=by_job)
    return lambda function: numbered(named(function))
