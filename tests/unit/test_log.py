# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging

from pvc.log import Sparing


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def make(line: int, level: int = logging.WARNING, text: str = "a caller was lost: %s") -> logging.LogRecord:
    return logging.LogRecord("pvc", level, "daemon.py", line, text, ("x",), None)


def test_a_line_that_callers_repeat_is_held_back_and_counted() -> None:
    clock = Clock()
    spare = Sparing(clock)
    assert sum(spare.filter(make(1)) for _ in range(10_000)) == Sparing.BURST
    clock.now += Sparing.EACH_S
    late = make(1)
    assert spare.filter(late)
    assert late.getMessage() == f"a caller was lost: x (and {10_000 - Sparing.BURST} more like it)"
    assert not spare.filter(make(1))


def test_each_line_of_the_program_has_a_pace_of_its_own() -> None:
    spare = Sparing(Clock())
    assert sum(spare.filter(make(1)) for _ in range(100)) == Sparing.BURST
    other = make(2)
    assert spare.filter(other)
    assert other.getMessage() == "a caller was lost: x"


def test_what_tells_of_work_done_may_come_at_the_pace_of_work() -> None:
    clock = Clock()
    spare = Sparing(clock)
    for _ in range(2_000):
        clock.now += 0.1
        assert spare.filter(make(3, logging.INFO))


def test_a_percent_sign_in_a_text_stays_one() -> None:
    clock = Clock()
    spare = Sparing(clock)
    for _ in range(100):
        spare.filter(make(4, text="100%% of %s"))
    clock.now += Sparing.EACH_S
    late = make(4, text="100%% of %s")
    assert spare.filter(late)
    assert late.getMessage().startswith("100% of x (and ")
