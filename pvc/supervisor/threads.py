"""Calls that may take their time (files on a slow file system), beside the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
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
        await asyncio.gather(running, return_exceptions=True)
        raise
