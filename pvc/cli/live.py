# SPDX-License-Identifier: Apache-2.0
"""A view that takes the terminal and is drawn again and again, until a key or a signal ends it."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

# Of xterm and all that imitate it: the other screen, the cursor.
_ENTER, _LEAVE = "\033[?1049h\033[?25l", "\033[?25h\033[?1049l"
_KEYS = {
    b"\033[A": "up", b"\033OA": "up", b"k": "up", b"\033[B": "down", b"\033OB": "down", b"j": "down",
    b"\033[5~": "page-up", b"\033[6~": "page-down", b" ": "page-down", b"g": "first", b"G": "last", b"q": "quit",
}  # fmt: skip
# Of a terminal that does not know its size, as a serial line.
_WIDTH, _HEIGHT = 80, 24
_MOVES = {"up": -1, "down": 1}

Draw = Callable[[int, int, int], tuple[list[str], int]]


class EndedError(BaseException):
    """A signal asks the process to end; the terminal is put back on the way."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def show(refresh: Callable[[], None], draw: Draw, interval_s: float) -> None:
    """Call ``refresh`` every ``interval_s`` and ``draw(width, height, top)`` after it, after a key and a new size.

    ``top`` is how far the user has scrolled; ``draw`` returns the lines and how far that really is. Returns when the
    user presses q; Ctrl-C raises KeyboardInterrupt as ever.
    """
    top = 0
    with _screen() as woken:
        while True:
            refresh()
            due = False
            while not due:
                size = os.get_terminal_size(sys.stdout.fileno())
                height = size.lines or _HEIGHT
                lines, top = draw(size.columns or _WIDTH, height, top)
                _write("\033[H" + "\r\n".join(f"{line}\033[K" for line in lines) + "\033[J")
                ready, _, _ = select.select([sys.stdin.fileno(), woken], [], [], interval_s)
                due = not ready
                if woken in ready:
                    os.read(woken, 64)
                if sys.stdin.fileno() in ready:
                    key = _KEYS.get(os.read(sys.stdin.fileno(), 16), "")
                    if key == "quit":
                        return
                    page = max(1, height - 4)
                    top += _MOVES.get(key, 0) + {"page-up": -page, "page-down": page}.get(key, 0)
                    top = {"first": 0, "last": 1 << 30}.get(key, max(0, top))


@contextmanager
def _screen() -> Iterator[int]:
    """The other screen without echo; gives a descriptor that is readable after a signal came (a new size)."""
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    old_wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    ends = (signal.SIGTERM, signal.SIGHUP)
    old = {number: signal.signal(number, _end) for number in ends}
    old[signal.SIGWINCH] = signal.signal(signal.SIGWINCH, _nothing)
    old[signal.SIGTSTP] = signal.signal(signal.SIGTSTP, signal.SIG_IGN)
    try:
        tty.setcbreak(fd)
        # Ctrl-C would drop what is being written, which may be the way back (termios(3), NOFLSH).
        mode = termios.tcgetattr(fd)
        mode[3] |= termios.NOFLSH
        termios.tcsetattr(fd, termios.TCSADRAIN, mode)
        _write(_ENTER)
        yield reader
    finally:
        _write(_LEAVE)
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
        signal.set_wakeup_fd(old_wakeup)
        for number, handler in old.items():
            signal.signal(number, handler)
        os.close(reader)
        os.close(writer)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _end(number: int, _: FrameType | None) -> None:
    raise EndedError(number)


def _nothing(number: int, frame: FrameType | None) -> None:
    """The wake-up descriptor is what is wanted."""
