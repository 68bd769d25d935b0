# SPDX-License-Identifier: Apache-2.0
"""The view that takes the terminal: drawn anew for keys and sizes, and the terminal is given back."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from tests.slurm.terminal import Terminal

pytestmark = pytest.mark.allow_run("a program on a terminal of its own")
ROOT = Path(__file__).resolve().parents[3]
PROGRAM = f"""
import sys, termios
sys.path.insert(0, {str(ROOT)!r})
from pvc.cli import live
looks = 0
def refresh():
    global looks
    looks += 1
def draw(width, height, top):
    top = min(top, 5)
    return [f"look {{looks}} {{width}}x{{height}} top {{top}}.", "line"], top
try:
    live.show(refresh, draw, float(sys.argv[1]))
    how = "quit"
except KeyboardInterrupt:
    how = "interrupted"
except live.EndedError as err:
    how = f"ended by {{err.number}}"
flags = termios.tcgetattr(0)[3]
print(how, bool(flags & termios.ECHO), bool(flags & termios.ICANON), "over")
"""
LEFT = r"\x1b\[\?25h\x1b\[\?1049l"


def start(interval: str = "60") -> Terminal:
    terminal = Terminal([sys.executable, "-c", PROGRAM, interval])
    terminal.resize(100, 30)
    terminal.expect(r"\x1b\[\?1049h\x1b\[\?25l")
    terminal.resize(70, 20)
    terminal.expect(r"look \d+ 70x20 top 0\.")
    return terminal


def test_keys_scroll_and_q_leaves() -> None:
    terminal = start()
    terminal.type("\x1b[B")
    terminal.expect(r"top 1\.")
    terminal.type("G")
    terminal.expect(r"top 5\.")
    terminal.type("k")
    terminal.expect(r"top 4\.")
    terminal.type("q")
    terminal.expect(LEFT)
    terminal.expect("quit True True over")
    assert terminal.wait() == 0


def test_it_looks_again() -> None:
    terminal = start("0.05")
    terminal.expect(r"look [1-9]\d ")
    terminal.type("q")
    terminal.expect("quit True True over")
    assert terminal.wait() == 0


@pytest.mark.parametrize(
    ("number", "how"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "ended by 15"), (signal.SIGHUP, "ended by 1")]
)
def test_signals_give_the_terminal_back(number: signal.Signals, how: str) -> None:
    terminal = start()
    if number is signal.SIGINT:
        terminal.type("\x03")
    else:
        terminal.send_signal(number)
    terminal.expect(LEFT)
    terminal.expect(f"{how} True True over")
    assert terminal.wait() == 0
