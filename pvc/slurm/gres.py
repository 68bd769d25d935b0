# SPDX-License-Identifier: Apache-2.0
"""Slurm's texts of generic resources: what a node has, and which of it a job was given."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pvc.model.host import GresPart, JobGres
from pvc.parse import parse_cpu_list

# "gpu:a100:2(IDX:0,2-3)", "lic(CNT:2)", "nic:1": commas in brackets are no separators.
_ITEM = re.compile(r"([^,()]+)(?:\(([^()]*)\))?(?:,|\Z)", re.ASCII)
_COUNT = re.compile(r"\d{1,6}", re.ASCII)


def parse_job_gres(text: str) -> JobGres:
    """``GIVEN;TOTAL``, as Slurm's controller tells them of a job on a node, and of the node.

    GIVEN has indices (``IDX``): entries of one name are numbered through all its types, in the order of gres.conf(5);
    Slurm 22.05, tried. A resource without ``File=`` there has none.

    :raise ValueError: not of this form.
    """
    given, semicolon, total = text.partition(";")
    if not semicolon:
        raise ValueError(f"{text!r} is no pair of generic resources")
    counts: dict[str, int] = {}
    for words, _ in _split(total):
        # Amounts such as "4G" are of resources that are no devices.
        amount = int(words[-1]) if _COUNT.fullmatch(words[-1]) else 0
        counts[words[0]] = counts.get(words[0], 0) + amount
    return JobGres(tuple(_parse_part(words, detail) for words, detail in _split(given)), counts)


def _parse_part(words: list[str], detail: str | None) -> GresPart:
    name, kind = words[0], words[1] if len(words) > 2 else ""
    label, _, value = (detail or "").partition(":")
    try:
        indices = parse_cpu_list(value) if label == "IDX" and value else None
    except ValueError:
        indices = None  # "IDX:N/A"
    return GresPart(name, kind, indices)


def _split(text: str) -> Iterator[tuple[list[str], str | None]]:
    at = 0
    while at < len(text):
        match = _ITEM.match(text, at)
        if match is None or match[1].startswith(":"):
            raise ValueError(f"{text!r} is no list of generic resources")
        yield match[1].split(":"), match[2]
        at = match.end()
