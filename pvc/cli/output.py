# SPDX-License-Identifier: Apache-2.0
"""What commands print: tables and JSON on standard output, notes and colours where a person looks.

Commands print by this module alone, and it cleans what it prints (``pvc.texts``): names, reasons and logs are words of
guests, registries and other users.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from typing import IO, Any

from pvc.errors import PvcError
from pvc.texts import clean_text, is_clean

_LONGEST = 1 << 16
_CODES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "blue": "34", "cyan": "36"}


class OutputError(PvcError):
    """Standard output is a full disk, or the like."""


def has_colour(stream: IO[str]) -> bool:
    """Whether ``stream`` is a terminal whose user did not turn colours off (https://no-color.org, TERM=dumb)."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return stream.isatty()


def paint(text: str, colour: str, stream: IO[str]) -> str:
    """``text``, cleaned, in ``colour`` (bold, dim, red, green, yellow, blue or cyan) if ``stream`` shows colours."""
    text = clean_text(text, _LONGEST)
    return f"\033[{_CODES[colour]}m{text}\033[0m" if has_colour(stream) else text


def say(text: str = "", *, label: str = "", error: bool = False, end: str = "\n", flush: bool = False) -> None:
    """Print ``text``, each of its lines cleaned; ``label`` comes before it as it is: what ``paint`` made."""
    lines = (clean_text(line.expandtabs(), _LONGEST) for line in text.split("\n"))
    # A full disk or a reader of errors that has gone is no reason to end with another code than the fault's.
    with suppress(OSError) if error else nullcontext():
        print(label + "\n".join(lines), end=end, file=sys.stderr if error else sys.stdout, flush=flush or error)


def pass_on(data: bytes, *, error: bool = False) -> None:
    """Print bytes as they are: who calls this has cleaned them, or was asked for them raw.

    :raise OutputError: standard output takes no more.
    """
    stream = (sys.stderr if error else sys.stdout).buffer
    try:
        stream.write(data)
        stream.flush()
    except BrokenPipeError:
        if not error:
            raise
    except OSError as err:
        # As for ``say``: without standard error all else goes on.
        if not error:
            raise OutputError("cannot write to standard output") from err


def hand_over(text: str) -> None:
    """Print what a program is to read, such as a file's name: where no terminal shows it, with each byte that its user
    has given it.
    """
    if sys.stdout.isatty():
        say(text, end="")
    else:
        pass_on(os.fsencode(text))


def format_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Left-aligned columns, two spaces apart; None shows as "-"."""
    cells = [list(header), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join(lines)


def print_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table to standard output, its header in bold on a terminal."""
    first, *rest = format_table(header, rows).split("\n")
    say("".join(f"\n{line}" for line in rest), label=paint(first, "bold", sys.stdout))


def print_json(value: Any) -> None:
    """Print a value (dataclasses welcome) to standard output as indented JSON."""
    import json

    from pvc.codec import to_data

    print(clean_json(json.dumps(to_data(value), indent=2, ensure_ascii=False)))


def clean_json(text: str) -> str:
    """The same JSON with what is no plain text written as its number (RFC 8259, section 7): nothing is lost."""
    return text.translate(_ESCAPES)


class _Escapes(dict[int, str]):
    """What stands for a character in JSON; each is looked at once, however long the texts are."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        if char != "\n" and not is_clean(char):
            units = char.encode("utf-16-be", "surrogatepass").hex()
            char = "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))
        self[code] = char
        return char


_ESCAPES = _Escapes()


class Bar:
    """How far something long has come: a bar with its rate on standard error where that is a terminal."""

    _WIDTH = 28

    def __init__(self, what: str) -> None:
        self._what = clean_text(what, 60)
        self._start = time.monotonic()
        self._drawn = False

    def show(self, done: int, total: int) -> None:
        """``done`` of ``total`` bytes."""
        if not is_live(sys.stderr) or total <= 0:
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
        self._live = is_live(sys.stderr) and not quiet
        self._start = time.monotonic()
        self._drawn = False

    def show(self, text: str) -> None:
        """The line as it is now."""
        if not self._live:
            return
        full = f"pvc: {clean_text(text)} ({time.monotonic() - self._start:.0f} s)"
        width = shutil.get_terminal_size().columns
        shown = full if len(full) < width else f"{full[: max(1, width - 2)]}…"
        print(f"\r\033[K{shown}", end="", file=sys.stderr, flush=True)
        self._drawn = True

    def end(self) -> None:
        """Nothing more will be shown."""
        if self._drawn:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
            self._drawn = False


def print_error(message: str, hint: str | None = None, details: Sequence[str] = ()) -> None:
    """Tell on standard error what failed, and what to do about it; ``details`` have lines of their own."""
    say(clean_text(message, _LONGEST), label=f"{paint('pvc:', 'red', sys.stderr)} ", error=True)
    for detail in details:
        say(clean_text(detail, _LONGEST), error=True)
    if hint:
        print_hint(hint)


def print_hint(hint: str) -> None:
    """Tell on standard error what to do about what was told before."""
    say(clean_text(hint, _LONGEST), label=f"{paint('hint:', 'cyan', sys.stderr)} ", error=True)


def print_note(message: str) -> None:
    """Tell something on standard error that is no error."""
    say(clean_text(message, _LONGEST), label=f"{paint('pvc:', 'dim', sys.stderr)} ", error=True)


def is_live(stream: IO[str]) -> bool:
    """Whether lines on ``stream`` can be written anew: it is a terminal, and one that knows how."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return clean_text(str(value), _LONGEST)
