# SPDX-License-Identifier: Apache-2.0
"""Texts of others made fit for a log, a reason that Slurm shows, or a terminal: the one place where that is done.

Whatever a user, a guest, a registry, an archive or a file's name brings may command a terminal, begin a line that looks
like one of ours, turn the direction of writing, show nothing, or never end. ``spank/common.c`` does the same in C.
"""

from __future__ import annotations

import re

# What is longer says nothing more to a person.
LINE = 1000
_CUT = "..."
# What VT100s and their heirs take for commands (ECMA-48): CSI sequences, strings (OSC, DCS, SOS, PM, APC) and
# two-character escapes; each of the first two also by its one C1 character.
_COMMAND = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -/]*[0-~]"
)
# Letters and marks by their class, which are drawn as nothing or as a blank: fillers, variation selectors, joiners.
_UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
_BLANK = re.compile(r"\s")
# More marks above one letter than any script needs run over the lines above it.
_PILE = re.compile("([\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]{3})"
                   "[\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]+")  # fmt: skip


def clean_text(text: str, limit: int = LINE, *, console: bool = False) -> str:
    """``text`` as one line of at most ``limit`` characters that shows all it has and commands nothing.

    Line ends and other blanks become spaces, and "?" stands for each character that is no text. ``console``: it is a
    line that somebody wrote for a terminal, so what moves and colours is left out without a sign. Only for such a line
    as a whole: a command that does not end would take what follows it along.
    """
    if len(text) <= limit and text.isascii() and text.isprintable():
        return text
    # A text of megabytes is cut before it is looked at.
    most = 4 * limit + LINE
    long, text = len(text) > most, text[:most]
    mark = "" if console else "?"
    if console:
        text = _COMMAND.sub("", text).expandtabs()
    text = _UNSEEN.sub(mark, _BLANK.sub(" ", text))
    text = _PILE.sub(r"\1", "".join(char if char.isprintable() else mark for char in text))
    if long or len(text) > limit:
        return text[: max(0, limit - len(_CUT))] + _CUT
    return text


def clean_lines(text: str, limit: int = LINE, *, console: bool = False) -> list[str]:
    """Each line of ``text``, cleaned, for who has several lines to show."""
    return [clean_text(line if console else line.expandtabs(), limit, console=console) for line in text.splitlines()]


def is_clean(text: str, limit: int = LINE) -> bool:
    """Whether ``text`` is fit to be shown as it is."""
    return clean_text(text, limit) == text
