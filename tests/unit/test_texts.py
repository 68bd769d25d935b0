# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvc.texts import LINE, clean_lines, clean_text, is_clean

# What has a class of letters, marks or symbols, and is drawn as nothing (Unicode: Default_Ignorable_Code_Point).
_UNSEEN = {0x34F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0} | {
    *range(0x180B, 0x1810),
    *range(0xFE00, 0xFE10),
    *range(0xE0100, 0xE01F0),
}


def _harmless(text: str) -> bool:
    return all(char == " " or unicodedata.category(char)[0] not in "CZ" for char in text) and not any(
        ord(char) in _UNSEEN for char in text
    )


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("vm0: cannot remove a-b_c.d (Größe 日本)", "vm0: cannot remove a-b_c.d (Größe 日本)"),
        ("no\x1b]0;x\x07 file\udcff\u202e", "no?]0;x? file??"),
        ("a\n2026-01-01 00:00:00,000 INFO forged\r\x0b", "a 2026-01-01 00:00:00,000 INFO forged  "),
        ("a\u2028b\u2029c\x85d\u3000e", "a b c d e"),
        ("\u2066x\u2069\u200b\ufeff\u00ad\u3164\ufe0f\U000e0041", "?x???????"),
        ("\x9b2J", "?2J"),
        ("e" + "\u0301" * 500, "e" + "\u0301" * 3),
    ],
)
def test_what_is_shown_of_a_text(text: str, shown: str) -> None:
    assert clean_text(text) == shown
    assert is_clean(text) == (text == shown)


def test_an_escape_sequence_takes_nothing_along() -> None:
    """What stands behind a name in a message of ours is still there."""
    assert clean_text("cannot remove \x1b]0;: Directory not empty").endswith(": Directory not empty")
    assert clean_text("cannot remove \x1b[: Directory not empty").endswith(": Directory not empty")


def test_a_line_of_a_console_loses_its_colours() -> None:
    assert (
        clean_text("\x1b[31mthree\x1b[0m\x1b]0;title\x07 \x08four\x9b1m\x90q\x9c.\x1b(B", console=True) == "three four."
    )
    assert clean_lines("a\tb\n\x1b[1mc\r\nd", console=True) == ["a       b", "c", "d"]


def test_texts_are_bounded() -> None:
    assert clean_text("x" * 161, 160) == "x" * 157 + "..."
    assert clean_text("x" * 160, 160) == "x" * 160
    assert len(clean_text("\x1b" * 10_000_000)) == LINE


@given(st.text(st.characters(), max_size=200) | st.text("\x1b\x9b[]0;mJ\\\x07\x90 a", max_size=60))
def test_every_text_becomes_harmless(text: str) -> None:
    for console in (False, True):
        cleaned = clean_text(text, 50, console=console)
        assert _harmless(cleaned)
        assert len(cleaned) <= 50
        assert clean_text(cleaned, 50) == cleaned
