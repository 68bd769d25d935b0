# SPDX-License-Identifier: Apache-2.0
"""Waiting for pipes, processes and signals at once, without asyncio (whose import costs 57 ms)."""

from __future__ import annotations

import os
import selectors
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FrameType


@dataclass
class _Timer:
    at: float
    period_s: float
    callback: Callable[[], None]


class Loop:
    """Calls back when a descriptor is readable or a signal arrives.

    Signals are caught, not ignored, so that a program started meanwhile has their default meaning.
    """

    def __init__(self, signals: Sequence[signal.Signals], on_signal: Callable[[signal.Signals], None]) -> None:
        self._selector = selectors.DefaultSelector()
        self._on_signal = on_signal
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        # Without signals it may run in any thread.
        self._old_wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False) if signals else None
        self._old_handlers = {number: signal.signal(number, _note) for number in signals}
        self._wanted = frozenset(int(number) for number in signals)
        self._timers: list[_Timer] = []
        self.add(self._reader, self._take_signals)

    def __enter__(self) -> Loop:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, fd: int, callback: Callable[[], None]) -> None:
        """Call ``callback`` whenever ``fd`` is readable."""
        self._selector.register(fd, selectors.EVENT_READ, callback)

    def add_writer(self, fd: int, callback: Callable[[], None]) -> None:
        """Call ``callback`` whenever ``fd`` can take data."""
        self._selector.register(fd, selectors.EVENT_WRITE, callback)

    def watch(self, fd: int, callback: Callable[[], None], *, read: bool, write: bool) -> None:
        """Call ``callback`` whenever ``fd`` is readable or can take data, as wanted; again: change what is wanted."""
        events = (selectors.EVENT_READ if read else 0) | (selectors.EVENT_WRITE if write else 0)
        if not events:
            self.remove(fd)
        elif fd in self._selector.get_map():
            self._selector.modify(fd, events, callback)
        else:
            self._selector.register(fd, events, callback)

    def every(self, period_s: float, callback: Callable[[], None]) -> None:
        """Call ``callback`` again and again while it serves."""
        self._timers.append(_Timer(time.monotonic() + period_s, period_s, callback))

    def remove(self, fd: int) -> None:
        """Forget ``fd``; an unknown one is fine."""
        try:
            self._selector.unregister(fd)
        except KeyError:
            return

    def run_until(
        self, done: Callable[[], bool], *, timeout_s: float | None = None, tick: Callable[[], None] | None = None
    ) -> bool:
        """Serve until ``done()``; False when ``timeout_s`` passed first. ``tick`` is called ten times a second."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not done():
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return False
            if tick is not None:
                tick()
                left = 0.1 if left is None else min(left, 0.1)
            left = self._ring(left)
            for key, _ in self._selector.select(left):
                callback: Callable[[], None] = key.data
                callback()
        return True

    def close(self) -> None:
        """Give the signals back."""
        if self._old_wakeup is not None:
            signal.set_wakeup_fd(self._old_wakeup)
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        self._selector.close()
        os.close(self._reader)
        os.close(self._writer)

    def _ring(self, left: float | None) -> float | None:
        """Call what is due; how long to wait now, at most ``left``."""
        now = time.monotonic()
        for timer in self._timers:
            if timer.at <= now:
                timer.at = now + timer.period_s
                timer.callback()
            left = timer.at - now if left is None else min(left, timer.at - now)
        return left

    def _take_signals(self) -> None:
        try:
            numbers = os.read(self._reader, 64)
        except BlockingIOError:
            return
        for number in numbers:
            if number in self._wanted:
                self._on_signal(signal.Signals(number))


def _note(number: int, frame: FrameType | None) -> None:
    """Nothing: the wake-up descriptor carries the signal to the loop."""
