# SPDX-License-Identifier: Apache-2.0
"""The lines of a script that sbatch(1) takes for options: ``#SBATCH --time=10``."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from pvc.errors import UsageError

_MARK = "#SBATCH"
_MOST_BYTES = 1 << 16


def read_directives(program: Path) -> tuple[str, ...]:
    """The words of a script's directives; nothing of a program that is no script.

    :raise UsageError: a line cannot be read.
    """
    try:
        with open(program, "rb") as stream:
            text = stream.read(_MOST_BYTES)
    except OSError:
        return ()
    if not text.startswith(b"#!"):
        return ()
    return tuple(parse_directives(text.decode(errors="surrogateescape"), str(program)))


def parse_directives(text: str, name: str) -> Iterator[str]:
    """The words of all directives above the first line that is neither empty nor a comment, as sbatch reads them.

    :raise UsageError: a quotation mark is missing.
    """
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip() and not line.startswith("#"):
            return
        if not line.startswith(_MARK) or line[len(_MARK) :][:1].strip():
            continue
        try:
            yield from shlex.split(line[len(_MARK) :], comments=True)
        except ValueError as err:
            raise UsageError(f"{name}:{number}: {line.strip()}: {err}") from None
