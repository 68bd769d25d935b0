# SPDX-License-Identifier: Apache-2.0
"""One stage of an image that is made from packages, as data: what any builder is told to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class BuildHost:
    """What builders have to know of this machine; ``proxies`` in apt.conf(5)'s form."""

    root: bool
    proxies: tuple[str, ...] = ()


@dataclass(frozen=True)
class StagePlan:
    """A command of ``builder``'s, what it wants to find in the work directory, and where there it leaves the archive.

    ``tell`` makes of a line of the command's standard error what people want to know; None: nothing.
    """

    builder: str
    argv: tuple[str, ...]
    files: Mapping[str, bytes]
    result: str
    tell: Callable[[str], str | None]
