# SPDX-License-Identifier: Apache-2.0
"""How Slurm's programs are asked: in an environment of ours, for records that no user's text can break."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence

from pvc import run
from pvc.errors import CommandError, HostError, JobError

_TIMEOUT_S = 30.0
# Which Slurm it is, who asks, and how libraries are found that a site's module has brought. All else changes what the
# programs answer: SQUEUE_PARTITION, SINFO_STATES, SCANCEL_INTERACTIVE, SLURM_CLUSTERS, SLURM_TIME_FORMAT.
_KEPT = ("HOME", "USER", "LOGNAME", "KRB5CCNAME", "LD_LIBRARY_PATH", "SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT")


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What programs that are asked get; times in their answers are seconds since the epoch.

    :raise JobError: SLURM_CONF names no file.
    """
    check_conf(environ)
    path = ":".join(part for part in (environ.get("PATH", ""), run.PATH) if part)
    kept = {name: environ[name] for name in _KEPT if name in environ}
    return {**run.BASE_ENV, **kept, "PATH": path, "SLURM_TIME_FORMAT": "%s"}


def check_conf(environ: Mapping[str, str]) -> None:
    """Slurm itself would look for the file for a minute, and then name one of its functions.

    :raise JobError: SLURM_CONF names no file that can be read.
    """
    name = environ.get("SLURM_CONF")
    if name is not None and not (os.path.isfile(name) and os.access(name, os.R_OK)):
        raise JobError(
            f"SLURM_CONF is {name!r} in the environment, and there is no file that can be read",
            hint="unset SLURM_CONF; Slurm finds its configuration by itself",
        )


def ask(argv: Sequence[str], what: str, *, ok_codes: Sequence[int] = (0,)) -> str:
    """What a program of Slurm's prints; ``what`` completes "cannot ...".

    :raise JobError: Slurm refuses or does not answer; its own words are in the message.
    """
    try:
        return run.run(argv, env=environment(os.environ), timeout_s=_TIMEOUT_S, ok_codes=ok_codes)
    except CommandError as err:
        raise JobError(f"cannot {what}: {err.stderr.strip() or err}") from None
    except HostError as err:
        raise JobError(f"cannot {what}", hint="install Slurm's client commands on this machine") from err


def ask_rows(argv: Sequence[str], columns: Sequence[str], what: str) -> list[tuple[str, ...]]:
    """What squeue or sinfo says in these columns of its --format.

    A job's name and comment are any text, line ends and Slurm's own keywords included; so rows and columns are
    parted by a word that was drawn just now.

    :raise JobError: as ``ask``.
    """
    word = secrets.token_hex(8)
    return split_rows(ask([*argv, "--format", format_row(columns, word)], what), len(columns), word)


def format_row(columns: Sequence[str], word: str) -> str:
    """The --format by which ``split_rows`` finds the columns again."""
    return f"{word}+" + f"{word}-".join(columns) + f"{word}."


def split_rows(text: str, count: int, word: str) -> list[tuple[str, ...]]:
    """Rows of ``format_row``; one that is cut short is left out."""
    rows = []
    for piece in text.split(f"{word}+")[1:]:
        body, end, _ = piece.partition(f"{word}.")
        parts = body.split(f"{word}-")
        if end and len(parts) == count:
            rows.append(tuple(parts))
    return rows
