# SPDX-License-Identifier: Apache-2.0
"""The last that a guest said on its console."""

from __future__ import annotations

from pvc.texts import clean_text

_LINE = 160
_REASONS = ("Kernel panic - not syncing", "BUG: ", "Oops: ")  # of Linux


def read_last_words(console: bytes, count: int = 5) -> tuple[str, ...]:
    """The last lines of a console that say something, fit to be printed on anybody's terminal.

    A kernel says why before it prints its registers: that line comes first, however far up it is.
    """
    lines: list[str] = []
    for line in console.decode(errors="replace").splitlines():
        text = clean_text(line.strip(), _LINE, console=True).strip()
        if text:
            lines.append(text)
    last = lines[-count:]
    reason = next((line for line in lines if any(sign in line for sign in _REASONS)), None)
    if reason is not None and reason not in last:
        last[0] = reason
    return tuple(last)
