"""Lets few of the requests that cost something through at a time, and those of one kind for one job one by one."""

from __future__ import annotations

import threading
import time
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

from pvc.errors import HostError

MAX_AT_ONCE = 4
PAUSE_S = 0.2


class Turnstile:
    """Each key passes alone and rests for ``PAUSE_S`` afterwards; ``MAX_AT_ONCE`` pass at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside: set[Hashable] = set()
        self._left: dict[Hashable, float] = {}

    @contextmanager
    def passing(self, key: Hashable) -> Iterator[None]:
        """Inside, nobody else has this key.

        :raise HostError: somebody does, did so just now, or too many others are inside.
        """
        now = time.monotonic()
        with self._lock:
            self._left = {other: moment for other, moment in self._left.items() if now - moment < PAUSE_S}
            if key in self._inside or key in self._left or len(self._inside) >= MAX_AT_ONCE:
                raise HostError("this node's networks are being examined already", hint="try again in some seconds")
            self._inside.add(key)
        try:
            yield
        finally:
            with self._lock:
                self._inside.discard(key)
                self._left[key] = time.monotonic()
