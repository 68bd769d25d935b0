# SPDX-License-Identifier: Apache-2.0
"""Telling the people and programs in guests that their VMs end soon."""

from __future__ import annotations

from pvc.ops.control import Control
from pvc.ops.execute import Command, Runner

# What a guest may have for it; it gets the seconds that are left, and the text.
HOOK = "/etc/pvc/hooks/walltime"
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
    command = Command(("sh", "-c", _SCRIPT, "pvc", str(left_s), text), stdin=False)
    runner = Runner(control, command, lambda *_: None, None)
    outcomes = runner.run(range(control.record.placement.count), _TIME_S, ())
    return sum(outcome.exit is not None for outcome in outcomes)
