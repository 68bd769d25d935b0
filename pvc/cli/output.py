"""What commands print: tables and JSON on standard output, notes and colours where a person looks."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Sequence
from typing import IO, Any

_CODES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "blue": "34", "cyan": "36"}


def has_colour(stream: IO[str]) -> bool:
    """Whether ``stream`` is a terminal whose user did not turn colours off (https://no-color.org, TERM=dumb)."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return stream.isatty()


def paint(text: str, colour: str, stream: IO[str]) -> str:
    """``text`` in ``colour`` (bold, dim, red, green, yellow, blue or cyan) if ``stream`` shows colours."""
    return f"\033[{_CODES[colour]}m{text}\033[0m" if has_colour(stream) else text


def format_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Left-aligned columns, two spaces apart; None shows as "-"."""
    cells = [list(header), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join(lines)


def print_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table to standard output, its header in bold on a terminal."""
    first, *rest = format_table(header, rows).split("\n")
    print("\n".join([paint(first, "bold", sys.stdout), *rest]))


def print_json(value: Any) -> None:
    """Print a value (dataclasses welcome) to standard output as indented JSON."""
    import json

    from pvc.codec import to_data

    print(json.dumps(to_data(value), indent=2, ensure_ascii=False))


class Bar:
    """How far something long has come: a bar with its rate on standard error where that is a terminal."""

    _WIDTH = 28

    def __init__(self, what: str) -> None:
        self._what = what
        self._start = time.monotonic()
        self._drawn = False

    def show(self, done: int, total: int) -> None:
        """``done`` of ``total`` bytes."""
        if not sys.stderr.isatty() or total <= 0:
            return
        rate = done / max(time.monotonic() - self._start, 1e-3)
        filled = self._WIDTH * done // total
        bar = "#" * filled + "." * (self._WIDTH - filled)
        text = f"{self._what} [{bar}] {100 * done // total:3d} % of {total >> 20} MiB, {rate / (1 << 20):.0f} MiB/s"
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
        self._drawn = True

    def end(self) -> None:
        """Nothing more will be shown."""
        if self._drawn:
            print(file=sys.stderr)
            self._drawn = False


class Line:
    """How far something is, in one line on standard error that is written anew; without a terminal nothing."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._live = sys.stderr.isatty() and not quiet
        self._start = time.monotonic()
        self._drawn = False

    def show(self, text: str) -> None:
        """The line as it is now."""
        if not self._live:
            return
        full = f"pvc: {text} ({time.monotonic() - self._start:.0f} s)"
        width = shutil.get_terminal_size().columns
        shown = full if len(full) < width else f"{full[: max(1, width - 2)]}…"
        print(f"\r\033[K{shown}", end="", file=sys.stderr, flush=True)
        self._drawn = True

    def end(self) -> None:
        """Nothing more will be shown."""
        if self._drawn:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
            self._drawn = False


def print_error(message: str, hint: str | None = None) -> None:
    """Tell on standard error what failed, and what to do about it."""
    label = paint("pvc:", "red", sys.stderr)
    print(f"{label} {message}", file=sys.stderr)
    if hint:
        print_hint(hint)


def print_hint(hint: str) -> None:
    """Tell on standard error what to do about what was told before."""
    print(f"{paint('hint:', 'cyan', sys.stderr)} {hint}", file=sys.stderr)


def print_note(message: str) -> None:
    """Tell something on standard error that is no error."""
    print(f"{paint('pvc:', 'dim', sys.stderr)} {message}", file=sys.stderr)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return str(value).replace("\n", " ")
