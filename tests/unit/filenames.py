# SPDX-License-Identifier: Apache-2.0
"""Names that people give to files and directories."""

from __future__ import annotations

import os

from hypothesis import strategies as st

SEEN = (
    "plain", "100%", "50%25", "%2e%2e", "%s %d", "%h", "%{vm_rank", "my file", " leading", "trailing ", "a\tb", "a#b",
    "#a", "what?", "a&b=c", "a;b", "a,b", "a,,b", "a:b", "vm0:x", "host:x", "C:\\x", "~", "~root", "#~a", "a+b", "-rf",
    "--", "-", ".hidden", "..a", "...", "a..", "it's", 'say "hi"', "`id`", "$(id)", "$HOME", "${HOME", "a\\b", "a\nb",
    "a\r\nb", "\n", "[1]", "{a,b}", "*", "a*", "<a>", "a|b", "a!b", "a@b", "scp:", "json:{}", "file:x", "nbd:x:1",
    "Grüße", "日本語", "e\u0301", "\u202eabc", "\u2028", "🎉", os.fsdecode(b"latin-\xe9"), os.fsdecode(b"\xff\xfe"),
    "\x1b[31mred", "\x01", "\x7f", "n" * 255, "ü" * 127,
)  # fmt: skip

_ANY = st.binary(min_size=1, max_size=60).map(lambda data: os.fsdecode(data.translate(None, b"/\0")))
# One part of a path: any bytes but "/" and zero.
NAMES = st.one_of(st.sampled_from(SEEN), _ANY.filter(lambda name: name not in ("", ".", "..")))
