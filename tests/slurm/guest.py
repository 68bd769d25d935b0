# SPDX-License-Identifier: Apache-2.0
"""Commands in a VM by its serial console, for guests that have no ssh server."""

from __future__ import annotations

import itertools
import os
import re
import select
import time
from typing import Any

from tests.slurm.testbed import Testbed
from tests.waits import PATIENCE_S

_COUNTER = itertools.count(1)


class Console:
    """A shell on a VM's console, reached with ``pvc console`` as its owner."""

    def __init__(self, tb: Testbed, job_id: int, vm: str, user: str = "student") -> None:
        argv = ["pvc", "console", "-j", str(job_id), vm]
        self._process: Any = tb.start(argv, user=user, stdin=-1, text=False, bufsize=0)
        self._data = b""

    def __enter__(self) -> Console:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stdin.close()
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()
        self._process.stderr.close()

    def type(self, line: str) -> None:
        """Type a line and wait for nothing."""
        self._process.stdin.write(f"{line}\n".encode())

    def run(self, command: str, timeout: float = PATIENCE_S) -> tuple[int, str]:
        """(exit code, output) of a shell command in the guest."""
        mark = f"mark{next(_COUNTER)}"
        # The echo of what is typed, once or twice, must neither look like the answer nor be a part of it: what is typed
        # before the shell reads is shown by the kernel, and by the shell again.
        word = f"{mark[:4]}''{mark[4:]}"
        line = f"echo {word}+; {command}; echo {word}=$?\n"
        self._process.stdin.write(line.encode())
        pattern = re.compile(mark.encode() + rb"\+\r?\n(.*?)" + mark.encode() + rb"=(\d+)", re.DOTALL)
        deadline = time.monotonic() + timeout
        while (match := pattern.search(self._data)) is None:
            left = deadline - time.monotonic()
            assert left > 0, f"no end of {command!r}: {self._data[-2000:].decode(errors='replace')}"
            if select.select([self._process.stdout], [], [], left)[0]:
                chunk = os.read(self._process.stdout.fileno(), 65536)
                assert chunk, self._process.stderr.read()
                self._data += chunk
        self._data = self._data[match.end() :]
        return int(match[2]), match[1].decode(errors="replace")
