# SPDX-License-Identifier: Apache-2.0
"""How fast this machine's time stamp counter runs.

No file tells: "cpu MHz" in /proc/cpuinfo is what a core has at the moment, CPUID has it on some processors only, and
the kernel's own figure is in its log. So the counter is read twice.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import time
from collections.abc import Callable
from functools import cache

# rdtsc; shl rdx, 32; or rax, rdx; ret (System V ABI: the result is rax)
_CODE = bytes.fromhex("0f31 48c1e220 4809d0 c3")
_WINDOW_S = 0.02
_TRIES = 5


@cache
def read_khz() -> int | None:
    """The counter's frequency, to some 0.01 %; None where it cannot be read. The first call takes 20 ms."""
    if platform.machine() != "x86_64":
        return None
    try:
        code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except OSError:  # a security module forbids memory that is written and executed
        return None
    code.write(_CODE)
    place = ctypes.c_char.from_buffer(code)
    try:
        count: Callable[[], int] = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(place))
        first_ns, first = _read_pair(count)
        time.sleep(_WINDOW_S)
        last_ns, last = _read_pair(count)
    finally:
        del place
        code.close()
    return (last - first) * 1_000_000 // (last_ns - first_ns)


def _read_pair(count: Callable[[], int]) -> tuple[int, int]:
    """A moment in nanoseconds and the counter then: of some tries the one in which least came between."""
    tries = []
    for _ in range(_TRIES):
        before = time.monotonic_ns()
        ticks = count()
        after = time.monotonic_ns()
        tries.append((after - before, (before + after) // 2, ticks))
    _, moment, ticks = min(tries)
    return moment, ticks
