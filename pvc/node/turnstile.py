# SPDX-License-Identifier: Apache-2.0
"""Lets few of the requests that cost something through at a time, and those of one kind for one job one by one."""

from __future__ import annotations

import threading
import time
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

from pvc.errors import HostError

MAX_AT_ONCE, MAX_OF_USER = 8, 2
PAUSE_S = 0.2


class Turnstile:
    """Each key passes alone and rests for ``PAUSE_S`` afterwards; ``MAX_AT_ONCE`` pass at a time, a user's by twos."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside: dict[Hashable, int] = {}
        self._left: dict[Hashable, float] = {}

    @contextmanager
    def passing(self, uid: int, key: Hashable) -> Iterator[None]:
        """Inside, nobody else has this key, which is of this user's.

        :raise HostError: somebody does, did so just now, or too many others are inside.
        """
        now = time.monotonic()
        with self._lock:
            self._left = {other: moment for other, moment in self._left.items() if now - moment < PAUSE_S}
            own = sum(each == uid for each in self._inside.values())
            if key in self._inside or key in self._left or len(self._inside) >= MAX_AT_ONCE or own >= MAX_OF_USER:
                raise HostError("this node's networks are being examined already", hint="try again in some seconds")
            self._inside[key] = uid
        try:
            yield
        finally:
            with self._lock:
                self._inside.pop(key, None)
                self._left[key] = time.monotonic()
