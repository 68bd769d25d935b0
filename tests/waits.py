# SPDX-License-Identifier: Apache-2.0
"""How tests wait: for an event, as long as it takes. A limit is there to end what hangs, and says nothing of speed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
# A machine that does much else besides may need a while for what takes a moment.
PATIENCE_S = 120.0


def wait_until(
    condition: Callable[[], T],
    timeout_s: float = PATIENCE_S,
    lack: str | Callable[[], object] = "waited in vain",
    *,
    bear: tuple[type[Exception], ...] = (),
) -> T:
    """What ``condition()`` gives once it is true; an exception of ``bear`` counts as "not yet".

    ``lack``: what it is when it does not come, a text or what makes one then, for the AssertionError.
    """
    deadline, pause_s = time.monotonic() + timeout_s, 0.01
    while True:
        try:
            if found := condition():
                return found
        except bear:
            pass
        if time.monotonic() > deadline:
            raise AssertionError(f"{lack() if callable(lack) else lack}, after {timeout_s:g} s")
        # What is soon there is soon seen; what takes long is not made longer by being looked for.
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.5, 0.25)


async def until(condition: Callable[[], object], timeout_s: float = PATIENCE_S, lack: str = "waited in vain") -> None:
    """The same in a loop of asyncio's, whose other tasks go on."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{lack}, after {timeout_s:g} s"
        await asyncio.sleep(0.005)
