# SPDX-License-Identifier: Apache-2.0
"""Whether what a program gives the API is what it takes: told where it is given, and not by an error further down."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping

from pvc.errors import UsageError


def want_text(name: str, value: object, hint: str | None = None) -> str:
    """A text.

    :raise UsageError: it is something else.
    """
    if not isinstance(value, str):
        raise _refusal(name, value, "a text", hint)
    return _without_nul(name, value)


def want_word(name: str, value: object, hint: str | None = None) -> str:
    """A text or a path.

    :raise UsageError: it is something else.
    """
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, str):
        raise _refusal(name, value, "a text or a path", hint)
    return _without_nul(name, value)


def want_words(name: str, value: object, hint: str | None = None) -> tuple[str, ...]:
    """Several texts or paths; one alone is a mistake, for its letters would be taken.

    :raise UsageError: it is something else.
    """
    if isinstance(value, (str, bytes, Mapping, os.PathLike)) or not isinstance(value, Iterable):
        raise _refusal(name, value, "a list of words", hint)
    return tuple(want_word(f"{name}[{index}]", each, hint) for index, each in enumerate(value))


def want_number(name: str, value: object, least: int) -> int:
    """A whole number of at least ``least``.

    :raise UsageError: it is something else.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise _refusal(name, value, f"a whole number of at least {least}", None)
    return value


def want_seconds(name: str, value: object) -> float:
    """Seconds.

    :raise UsageError: they are no number, less than 0, or endless.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not (math.isfinite(value) and value >= 0):
        raise _refusal(name, value, "a number of seconds, as 90 or 0.5", None)
    return float(value)


def want_variables(name: str, value: object) -> dict[str, str]:
    """Variables of an environment.

    :raise UsageError: they are something else.
    """
    if not isinstance(value, Mapping):
        raise _refusal(name, value, "a mapping of texts, as {'LANG': 'C'}", None)
    found = {}
    for key, text in value.items():
        word = want_text(f"a name in {name}", key)
        if not word or "=" in word:
            raise UsageError(f"{name}: {word!r} is no name of a variable")
        found[word] = want_word(f"{name}[{word!r}]", text)
    return found


def _without_nul(name: str, value: str) -> str:
    if "\0" in value:
        raise UsageError(f"{name} has a character of code 0 in it, which no command line can hold")
    return value


def _refusal(name: str, value: object, wanted: str, hint: str | None) -> UsageError:
    shown = repr(value)
    shown = shown if len(shown) <= 60 else f"{shown[:60]}..."
    return UsageError(f"{name} is {shown}, but {wanted} is wanted", hint=hint)
