# SPDX-License-Identifier: Apache-2.0
"""A store in this process: for plans made without a cluster, and the reference in the stores' contract tests."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from pvc.state.store import Absent, Check, Delete, DeletePrefix, EmptyPrefix, Put, Result, Write


class MemoryStore:
    """See ``store.Store``."""

    def __init__(self) -> None:
        self._keys: dict[str, str] = {}
        self._lock = threading.Lock()

    def transact(self, checks: Sequence[Check], writes: Sequence[Write], reads: Sequence[str] = ()) -> Result:
        with self._lock:
            if not all(self._holds(check) for check in checks):
                return Result(False, {})
            for write in writes:
                self._apply(write)
            return Result(True, {key: self._keys[key] for key in reads if key in self._keys})

    def read_prefix(self, prefix: str) -> dict[str, str]:
        with self._lock:
            return {key: value for key, value in sorted(self._keys.items()) if key.startswith(prefix)}

    def close(self) -> None:
        pass

    def _holds(self, check: Check) -> bool:
        match check:
            case Absent(key):
                return key not in self._keys
            case EmptyPrefix(prefix):
                return not any(key.startswith(prefix) for key in self._keys)

    def _apply(self, write: Write) -> None:
        match write:
            case Put(key, value):
                self._keys[key] = value
            case Delete(key):
                self._keys.pop(key, None)
            case DeletePrefix(prefix):
                for key in [key for key in self._keys if key.startswith(prefix)]:
                    del self._keys[key]
