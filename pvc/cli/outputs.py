# SPDX-License-Identifier: Apache-2.0
"""How output of commands in many VMs is printed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import IO, TYPE_CHECKING

from pvc.cli import output
from pvc.texts import clean_text

if TYPE_CHECKING:
    from pvc.ops.execute import Outcome

# A line that does not end is cut: a guest must not fill our memory.
_MAX_LINE = 1 << 16
MAX_KEPT = 64 << 20
_COLOURS = ("cyan", "green", "yellow", "blue")


class Passed:
    """One VM's output, byte by byte as it comes."""

    def take(self, rank: int, data: bytes, second: bool) -> None:
        """Print it."""
        del rank
        output.pass_on(data, error=second)

    def end(self) -> None:
        """Nothing is kept."""


class Prefixed:
    """Lines, each with its VM's name before it; lines of several VMs are not mixed.

    On a terminal they are cleaned, so no VM speaks in another's name; elsewhere, and ``raw``, each byte is the guest's.
    """

    def __init__(self, width: int, *, raw: bool = False) -> None:
        self._width = width
        self._raw = raw
        self._rest: dict[tuple[int, bool], bytes] = {}

    def take(self, rank: int, data: bytes, second: bool) -> None:
        """Print the lines that are complete."""
        *lines, rest = (self._rest.pop((rank, second), b"") + data).split(b"\n")
        while len(rest) > _MAX_LINE:
            lines.append(rest[:_MAX_LINE])
            rest = rest[_MAX_LINE:]
        if rest:
            self._rest[rank, second] = rest
        self._print(rank, lines, second)

    def end(self) -> None:
        """Print the beginnings of lines that are left."""
        for (rank, second), line in sorted(self._rest.items()):
            self._print(rank, [line], second)
        self._rest.clear()

    def _print(self, rank: int, lines: Sequence[bytes], second: bool) -> None:
        stream = sys.stderr if second else sys.stdout
        name = output.paint(f"vm{rank}:".ljust(self._width + 1), _COLOURS[rank % len(_COLOURS)], stream).encode()
        shown = (name + b" " + _show(line, stream, raw=self._raw) + b"\n" for line in lines)
        output.pass_on(b"".join(shown), error=second)


class Gathered:
    """All output, printed at the end: what several VMs said alike, once. Cleaned as by ``Prefixed``."""

    def __init__(self, *, raw: bool = False) -> None:
        self._raw = raw
        self._kept: dict[tuple[int, bool], bytearray] = {}
        self._size = 0
        self._cut = False

    def take(self, rank: int, data: bytes, second: bool) -> None:
        """Keep it, up to MAX_KEPT bytes of all."""
        part = data[: max(0, MAX_KEPT - self._size)]
        self._cut = self._cut or len(part) < len(data)
        self._size += len(part)
        self._kept.setdefault((rank, second), bytearray()).extend(part)

    def text(self, rank: int, *, second: bool) -> str:
        """What one VM said."""
        return self._kept.get((rank, second), bytearray()).decode(errors="replace")

    def end(self) -> None:
        """Say so if there was too much."""
        if self._cut:
            output.print_note(f"more than {MAX_KEPT >> 20} MiB were said; the rest is left out")

    def show(self, outcomes: Sequence[Outcome]) -> None:
        """Each text below the names of those who said it, as clush -b does."""
        from pvc.ops.vmsets import fold_vms

        for second in (False, True):
            stream = sys.stderr if second else sys.stdout
            groups: dict[bytes, list[int]] = {}
            for outcome in outcomes:
                text = bytes(self._kept.get((outcome.rank, second), b""))
                if text:
                    groups.setdefault(text, []).append(outcome.rank)
            for text, ranks in groups.items():
                count = f" ({len(ranks)})" if len(ranks) > 1 else ""
                rule = "-" * 15
                head = [output.paint(line, "bold", stream) for line in (rule, f"{fold_vms(ranks)}{count}", rule)]
                lines = [_show(line, stream, raw=self._raw) for line in text.removesuffix(b"\n").split(b"\n")]
                output.pass_on(b"".join(line + b"\n" for line in [*map(str.encode, head), *lines]), error=second)


def _show(line: bytes, stream: IO[str], *, raw: bool) -> bytes:
    if raw or not stream.isatty():
        return line
    text = line.decode(errors="replace").removesuffix("\r")
    return clean_text(text, _MAX_LINE, console=True).encode(errors="replace")
