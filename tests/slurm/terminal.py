# SPDX-License-Identifier: Apache-2.0
"""A command on a pseudo terminal, typed at as a person would."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import termios
import time
from collections.abc import Sequence

from tests.waits import PATIENCE_S


class Terminal:
    """A command whose standard streams are a terminal of its own."""

    def __init__(self, argv: Sequence[str]) -> None:
        self._pid, self._fd = pty.fork()
        if self._pid == 0:
            os.environ["TERM"] = "xterm"
            try:
                os.execvp(argv[0], list(argv))
            finally:
                os._exit(127)
        self.text = ""
        self._seen = 0

    def expect(self, pattern: str, timeout: float = PATIENCE_S) -> str:
        """Read until ``pattern`` is in what came since the last call."""
        deadline = time.monotonic() + timeout
        while (match := re.search(pattern, self.text[self._seen :])) is None:
            assert time.monotonic() < deadline, f"no {pattern!r} in {self.text!r}"
            assert self._read(0.2), f"the command ended without {pattern!r}: {self.text!r}"
        self._seen += match.end()
        return match[0]

    def type(self, keys: str) -> None:
        """Press keys, control characters included."""
        os.write(self._fd, keys.encode())

    def wait(self, timeout: float = PATIENCE_S) -> int:
        """The exit code."""
        deadline = time.monotonic() + timeout
        while self._read(0.2):
            assert time.monotonic() < deadline, f"no end: {self.text!r}"
        _, status = os.waitpid(self._pid, 0)
        os.close(self._fd)
        return os.waitstatus_to_exitcode(status)

    def resize(self, columns: int, lines: int) -> None:
        """Give the terminal another size."""
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def send_signal(self, number: signal.Signals) -> None:
        """Send the command a signal."""
        os.kill(self._pid, number)

    def kill(self) -> None:
        """End the command, whatever it does."""
        os.kill(self._pid, signal.SIGKILL)
        self.wait()

    def _read(self, timeout: float) -> bool:
        ready, _, _ = select.select([self._fd], [], [], timeout)
        if not ready:
            return True
        try:
            data = os.read(self._fd, 1 << 16)
        except OSError:  # EIO: the other side is closed
            return False
        self.text += data.decode(errors="replace")
        return bool(data)
