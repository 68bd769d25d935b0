# SPDX-License-Identifier: Apache-2.0
"""One thing that doctor looked at, and what it found."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from pvc.errors import PvcError


class Verdict(StrEnum):
    """OK: works; WARN: works with a limit; FAIL: clusters of VMs do not work until it is fixed."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Finding:
    """``where`` is a node's name, or empty for the machine that doctor runs on."""

    check: str
    verdict: Verdict
    text: str
    fix: str | None = None
    where: str = ""


Check = Callable[[], Iterator[Finding]]


def ok(check: str, text: str) -> Finding:
    """It works."""
    return Finding(check, Verdict.OK, text)


def warn(check: str, text: str, fix: str | None = None) -> Finding:
    """It works with a limit."""
    return Finding(check, Verdict.WARN, text, fix)


def fail(check: str, text: str, fix: str | None = None) -> Finding:
    """It does not work."""
    return Finding(check, Verdict.FAIL, text, fix)


def examine(name: str, check: Check) -> Iterator[Finding]:
    """What ``check`` finds; an error that it raises is a finding, too, so that the other checks go on."""
    try:
        yield from check()
    except PvcError as err:
        yield fail(name, str(err), err.find_hint())
    except OSError as err:
        yield fail(name, str(err))


def has_failure(findings: Sequence[Finding]) -> bool:
    """Whether clusters of VMs cannot work here."""
    return any(finding.verdict is Verdict.FAIL for finding in findings)
