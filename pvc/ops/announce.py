"""Telling the people and programs in guests that their VMs end soon."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from pvc.errors import PvcError
from pvc.model.cluster import NodeEndpoint
from pvc.ops.control import Control
from pvc.ops.status import find_endpoint
from pvc.ops.streams import Channel

# What a guest may have for it; it gets the seconds that are left, and the text.
HOOK = "/etc/pvc/hooks/walltime"
_WINDOW = 1 << 12
_TIME_S = 20.0
# Where there is no wall(1), every terminal somebody is logged in at is written to.
_SCRIPT = f"""
[ -x {HOOK} ] && {HOOK} "$1" "$2" </dev/null >/dev/null 2>&1 &
if command -v wall >/dev/null 2>&1; then echo "$2" | wall
else for terminal in /dev/pts/[0-9]* /dev/console; do
    [ -w "$terminal" ] && printf '\\r\\n%s\\r\\n' "$2" > "$terminal"
done; fi
wait
"""


def announce(control: Control, left_s: int, text: str) -> int:
    """Run the hook of every guest that has an agent, and write to its terminals; returns how many were told."""
    return asyncio.run(_announce(control, left_s, text))


async def _announce(control: Control, left_s: int, text: str) -> int:
    words = [
        ("op", "exec"),
        ("stdin", "0"),
        *(("arg", each) for each in ("sh", "-c", _SCRIPT, "pvc", str(left_s), text)),
    ]
    by_node: dict[str, list[int]] = {}
    endpoints: dict[str, NodeEndpoint] = {}
    for rank in range(control.record.placement.count):
        try:
            endpoint = find_endpoint(control.record, rank)
        except PvcError:
            continue  # its node never listened
        endpoints[endpoint.node] = endpoint
        by_node.setdefault(endpoint.node, []).append(rank)
    told = await asyncio.gather(*(_tell(control, endpoints[node], by_node[node], words) for node in by_node))
    return sum(told)


async def _tell(
    control: Control, endpoint: NodeEndpoint, ranks: Sequence[int], words: Sequence[tuple[str, str]]
) -> int:
    try:
        channel = await Channel.connect(control, endpoint)
    except PvcError:
        return 0
    told = 0
    try:
        async with asyncio.timeout(_TIME_S):
            streams = [await channel.open(rank, words, _WINDOW) for rank in ranks]
            for stream in streams:
                while await stream.read() is not None:
                    pass
                told += "exit" in await stream.closed
    except (PvcError, TimeoutError):
        return told
    finally:
        await channel.close()
    return told
