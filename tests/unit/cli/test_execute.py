# SPDX-License-Identifier: Apache-2.0
"""How the words of ``pvc exec`` are read."""

from __future__ import annotations

import pytest

from pvc.cli.execute import split_words


@pytest.mark.parametrize(
    ("wanted", "words", "vms", "command"),
    [
        ((), ("vm0", "uname", "-r"), ("vm0",), ("uname", "-r")),
        ((), ("vm[0-3,7],vm9", "--", "ls"), ("vm[0-3,7],vm9",), ("ls",)),
        ((), ("uname", "vm0"), (), ("uname", "vm0")),
        ((), ("vmstat", "1"), (), ("vmstat", "1")),
        ((), ("vm0x",), (), ("vm0x",)),
        (("vm1",), ("vm0", "--", "x"), ("vm1",), ("vm0", "--", "x")),
        ((), ("vm2", "--", "vm0"), ("vm2",), ("vm0",)),
        ((), (), (), ()),
    ],
)
def test_a_first_word_may_say_where(
    wanted: tuple[str, ...], words: tuple[str, ...], vms: tuple[str, ...], command: tuple[str, ...]
) -> None:
    assert split_words(wanted, words) == (vms, command)
