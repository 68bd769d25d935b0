# SPDX-License-Identifier: Apache-2.0
"""The one form of every line: the same keys for the same things, whatever was measured.

``wall_s`` is the median of ``runs`` runs, with ``_min`` and ``_max``; so is each further figure of a line, by its own
name. A key that does not apply is null. ``budget_KEY`` is what the design allows KEY: the most, of
``ratio_to_plain`` the least.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

Row = dict[str, object]


def row(
    phase: str,
    *,
    data_path: str | None = None,
    vms: int | None = None,
    peers: int | None = None,
    forks: int | None = None,
    times: Sequence[float] = (),
    **more: object,
) -> Row:
    """A line of a measurement; ``times`` in seconds, ``peers`` the other nodes of the job."""
    runs: Row = {"runs": len(times) or None}
    counted: Row = {"data_path": data_path, "vms": vms, "peers": peers, "forks": forks}
    return {"phase": phase, **counted, **(spread("wall_s", times) if times else {"wall_s": None}), **runs, **more}


def spread(key: str, figures: Sequence[float], digits: int = 4) -> Row:
    """The median, the least and the greatest."""
    values = (statistics.median(figures), min(figures), max(figures))
    return {name: round(value, digits) for name, value in zip((key, f"{key}_min", f"{key}_max"), values, strict=True)}
