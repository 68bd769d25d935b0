# SPDX-License-Identifier: Apache-2.0
"""Slurm's node lists."""

from __future__ import annotations

import re

_ONE_RANGE = re.compile(r"([^\[\]]*)\[([^\[\]]*)\]([^\[\]]*)")


def expand_nodes(text: str) -> tuple[str, ...]:
    """The nodes of "n[1-3],login", in the order written, which is the order of Slurm's other per-node lists.

    :raise ValueError: not a node list.
    """
    names: list[str] = []
    for part in _split_outside_brackets(text):
        names.extend(_expand_part(part) if "[" in part else (part,))
    if not names or not all(names):
        raise ValueError(f"{text!r} is not a list of nodes")
    return tuple(names)


def fold_names(names: tuple[str, ...]) -> str:
    """The inverse for a reader: "vm[0-3,7]"."""
    if len(names) == 1:
        return names[0]
    from ClusterShell.NodeSet import NodeSet

    return str(NodeSet.fromlist(names))


def _expand_part(part: str) -> tuple[str, ...]:
    # NodeSet costs 50 ms to import, and most lists have no brackets
    from ClusterShell.NodeSet import NodeSet, NodeSetParseError

    match = _ONE_RANGE.fullmatch(part)
    # A set is sorted: of one range, each piece is a set for itself.
    pieces = [f"{match[1]}[{piece}]{match[3]}" for piece in match[2].split(",")] if match is not None else [part]
    try:
        return tuple(dict.fromkeys(name for piece in pieces for name in NodeSet(piece)))
    except NodeSetParseError as err:
        raise ValueError(f"{part!r} is not a list of nodes: {err}") from err


def _split_outside_brackets(text: str) -> list[str]:
    parts, depth, start = [], 0, 0
    for position, char in enumerate(text):
        depth += (char == "[") - (char == "]")
        if char == "," and depth == 0:
            parts.append(text[start:position].strip())
            start = position + 1
    parts.append(text[start:].strip())
    return parts
