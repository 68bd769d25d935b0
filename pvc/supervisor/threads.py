# SPDX-License-Identifier: Apache-2.0
"""Calls that may take their time (files on a slow file system), beside the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
Result = TypeVar("Result")


async def outlast(function: Callable[P, Result], *args: P.args, **kwargs: P.kwargs) -> Result:
    """Call it in a thread. Whoever is cancelled meanwhile goes on only after its end: a thread cannot be stopped, and
    what it works on, such as a descriptor, must not be closed before.
    """
    running = asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        # More than once, perhaps: a start that is broken off belongs to a cluster that is stopped.
        while not running.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait({running})
        if not running.cancelled():
            running.exception()  # nobody else asks for it
        raise
