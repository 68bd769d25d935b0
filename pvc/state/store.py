# SPDX-License-Identifier: Apache-2.0
"""What pvc needs of a state store: small transactions over string keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Absent:
    """Check: there is no such key."""

    key: str


@dataclass(frozen=True)
class EmptyPrefix:
    """Check: no key begins with ``prefix``."""

    prefix: str


@dataclass(frozen=True)
class Put:
    """Write a key."""

    key: str
    value: str


@dataclass(frozen=True)
class Delete:
    """Remove a key, if it is there."""

    key: str


@dataclass(frozen=True)
class DeletePrefix:
    """Remove every key that begins with ``prefix``."""

    prefix: str


Check = Absent | EmptyPrefix
Write = Put | Delete | DeletePrefix


class Store(Protocol):
    """A linearizable key-value store. Every method raises StateError when the store does not answer."""

    def transact(self, checks: Sequence[Check], writes: Sequence[Write], reads: Sequence[str] = ()) -> Result:
        """If all checks hold, apply the writes and read the keys, in one step; else do nothing."""

    def read_prefix(self, prefix: str) -> dict[str, str]:
        """Every key that begins with ``prefix``."""

    def close(self) -> None:
        """Let go of connections."""


@dataclass(frozen=True)
class Result:
    """``done``: the checks held. ``values``: the keys that were read and exist."""

    done: bool
    values: dict[str, str]
