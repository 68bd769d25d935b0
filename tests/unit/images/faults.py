# SPDX-License-Identifier: Apache-2.0
"""A fault injector: something happens just before the n-th call of the system that Python tells of.

Audit hooks (PEP 578) are called before open, link, rename, unlink, mkdir, chmod, listdir and flock. They cannot
be taken away again, so each run is a process of its own, forked.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from itertools import count

EVENTS = {
    "open", "os.link", "os.rename", "os.remove", "os.mkdir", "os.chmod", "os.listdir", "os.scandir", "os.truncate",
    "fcntl.flock",
}  # fmt: skip


def die() -> None:
    """As a node that loses power, as far as one process can."""
    os.kill(os.getpid(), signal.SIGKILL)


def run_at(number: int, action: Callable[[], object], fault: Callable[[], object]) -> bool:
    """Run ``action`` in a new process with ``fault`` before its call ``number``; whether there were so many calls.

    :raise AssertionError: action or fault raised.
    """
    pid = os.fork()
    if pid == 0:
        gc.disable()  # it would write to, and so copy, all that the tests around have in memory
        code = 1
        try:
            code = 0 if _run_hooked(number, action, fault) else 3
        except BaseException:  # noqa: BLE001  nothing may return into the tests of the parent
            traceback.print_exc()
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, 3, -signal.SIGKILL), f"call {number}: ended with {code}"
    return code != 3


def _run_hooked(number: int, action: Callable[[], object], fault: Callable[[], object]) -> bool:
    left, busy = number, False

    def hook(event: str, _arguments: tuple[object, ...]) -> None:
        nonlocal left, busy
        if event not in EVENTS or busy:
            return
        if left == 0:
            busy = True
            fault()
            busy = False
        left -= 1

    sys.addaudithook(hook)
    action()
    done = left < 0
    left = -1
    return done


def boundaries(
    action: Callable[[], object], fault: Callable[[], object], prepare: Callable[[], object]
) -> Iterator[int]:
    """Each call of ``action`` in turn, after its run with the fault; ``prepare`` comes before each run."""
    for number in count():
        prepare()
        if not run_at(number, action, fault):
            return
        yield number
