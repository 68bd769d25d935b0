# SPDX-License-Identifier: Apache-2.0
"""Processes that a node of a measurement starts, counted by the kernel: ptrace(2) reports every one of them.

    python -m tests.bench._forks ORDER…

starts a ``_node``, gives it the orders (JSON) and prints for each how many processes were started meanwhile, by it or
by what it started, threads aside. A daemon that leaves its parent counts as what it takes: two forks and more.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

from tests.bench._node import TOP, Remote

_SEIZE, _CONT, _LISTEN, _GETEVENTMSG = 0x4206, 7, 0x4208, 0x4201
_FORK, _VFORK, _CLONE, _STOP = 1, 2, 3, 128
_OPTIONS = (1 << _FORK) | (1 << _VFORK) | (1 << _CLONE)
_WALL = 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_LIBC.ptrace.restype = ctypes.c_long


def count_forks(orders: list[dict[str, object]]) -> list[int]:
    """Processes started during each order, in a fresh process of the caller's namespaces."""
    argv = [sys.executable, "-m", "tests.bench._forks", *(json.dumps(order) for order in orders)]
    # A process of its own: when it ends, the kernel lets go of daemons that it watched.
    done = subprocess.run(argv, cwd=TOP, check=True, stdout=subprocess.PIPE, text=True)
    return [int(word) for word in done.stdout.split()]


class _Watch:
    """Counts; runs what it watches until told otherwise."""

    def __init__(self, pid: int) -> None:
        self.forks = 0
        for task in Path(f"/proc/{pid}/task").iterdir():
            _ptrace(_SEIZE, int(task.name), _OPTIONS)

    def turn(self) -> bool:
        """Handle one stop, if there is one."""
        try:
            pid, status = os.waitpid(-1, os.WNOHANG | _WALL)
        except ChildProcessError:
            return False
        if pid == 0:
            return False
        if not os.WIFSTOPPED(status):
            return True
        event, number = status >> 16, os.WSTOPSIG(status)
        if event in (_FORK, _VFORK, _CLONE):
            self.forks += _is_process(pid) if event == _CLONE else 1
        if event == _STOP and number != signal.SIGTRAP:
            _ptrace(_LISTEN, pid, 0)
        else:
            _ptrace(_CONT, pid, 0 if event else number)
        return True


def _is_process(parent: int) -> int:
    child = ctypes.c_ulong()
    _ptrace(_GETEVENTMSG, parent, ctypes.addressof(child))
    lines = Path(f"/proc/{child.value}/status").read_text().splitlines()
    leader = next(line.split()[1] for line in lines if line.startswith("Tgid:"))
    return int(int(leader) == child.value)


def _ptrace(request: int, pid: int, data: int) -> None:
    if _LIBC.ptrace(request, pid, None, data) < 0:
        number = ctypes.get_errno()
        if number != 3:  # ESRCH: it was killed meanwhile
            raise OSError(number, os.strerror(number))


def main(orders: list[str]) -> None:
    node = Remote()
    assert node.process.stdout is not None
    watch = _Watch(node.process.pid)
    for order in orders:
        before = watch.forks
        node.send(**json.loads(order))
        while not select.select([node.process.stdout], [], [], 0.0005)[0]:
            while watch.turn():
                pass
        node.read()
        print(watch.forks - before, flush=True)
    # Without a farewell: whoever is stopped at this moment would never run to its end.
    os.kill(node.process.pid, signal.SIGKILL)
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
