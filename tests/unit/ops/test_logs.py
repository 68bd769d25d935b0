# SPDX-License-Identifier: Apache-2.0
"""Logs as they are shown."""

from __future__ import annotations

from pvc.ops.logs import Lines


def test_lines_are_whole_and_harmless() -> None:
    said: list[bytes] = []
    lines = Lines(said.append, "vm3: ")
    for part in (b"login", b": \r\n\x1b[31mred\x1b[0m \xff\x07", b"\nta\tb\n\n/ # "):
        lines.put(part)
    assert b"".join(said).decode() == "vm3: login:\nvm3: red �\nvm3: ta      b\nvm3: \n"
    lines.end()
    assert b"".join(said).decode().endswith("\nvm3: / #\n")
    lines.end()
    assert b"".join(said).decode().endswith("\nvm3: / #\n")
