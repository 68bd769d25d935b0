# SPDX-License-Identifier: Apache-2.0
"""Sets of VMs as people write them."""

from __future__ import annotations

import re
from collections.abc import Iterable

_PART = r"vm(?:\d+|\[[0-9,-]+\])"
_SET = re.compile(rf"{_PART}(?:,{_PART})*", re.ASCII)


def is_set(word: str) -> bool:
    """Whether a word is meant as VMs and not as a command: ``vm3``, ``vm[0-3,7]``, ``vm0,vm[2-4]``."""
    return _SET.fullmatch(word) is not None


def fold_vms(ranks: Iterable[int]) -> str:
    """``vm[0-3,7]``, or ``vm2``."""
    parts: list[list[int]] = []
    for rank in sorted(set(ranks)):
        if parts and parts[-1][1] == rank - 1:
            parts[-1][1] = rank
        else:
            parts.append([rank, rank])
    if len(parts) == 1 and parts[0][0] == parts[0][1]:
        return f"vm{parts[0][0]}"
    return f"vm[{','.join(str(a) if a == b else f'{a}-{b}' for a, b in parts)}]"
