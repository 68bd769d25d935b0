# SPDX-License-Identifier: Apache-2.0
"""Packet sockets of Open vSwitch, closed all at once.

The kernel closes a packet socket only after an RCU grace period (``synchronize_net`` in packet_release), about 12 ms,
and ovs-vswitchd has one for each port of its own datapath and closes one after the other. While somebody else holds
them too, closing costs it nothing; and grace periods that are waited for at the same time are one.
"""

from __future__ import annotations

import ctypes
import os
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)
_SYS_PIDFD_GETFD = 438
# Descriptors and threads for a moment; what is beyond ovs-vswitchd closes itself.
_MOST = 256


@contextmanager
def held(process: int | None, devices: Sequence[str]) -> Iterator[int]:
    """Hold the sockets that a process has on devices of this namespace, and close them at the end; how many.

    Those that cannot be held are left out: no such process or device, Linux before 5.6, no permission (ptrace(2)).
    """
    found = [] if process is None else _hold(process, devices)
    try:
        yield len(found)
    finally:
        _close(found)


def _close(fds: Sequence[int]) -> None:
    """Side by side, for each waits for the kernel's other processors."""
    started = []
    for fd in fds:
        thread = threading.Thread(target=os.close, args=[fd])
        try:
            thread.start()
        except RuntimeError:  # users have all processes: one after another is only slower
            os.close(fd)
        else:
            started.append(thread)
    for thread in started:
        thread.join()


def _hold(process: int, devices: Sequence[str]) -> list[int]:
    wanted = _find(devices)
    found: list[int] = []
    if not wanted:
        return found
    with suppress(OSError):
        pidfd = os.pidfd_open(process)
        try:
            for entry in Path(f"/proc/{process}/fd").iterdir():
                if len(found) < _MOST and _inode(entry) in wanted:
                    found += _take(pidfd, int(entry.name), wanted)
        finally:
            os.close(pidfd)
    return found


def _find(devices: Sequence[str]) -> set[int]:
    """The inodes of packet sockets that are bound to one of these."""
    indexes = set()
    for name in devices:
        with suppress(OSError):
            indexes.add(str(socket.if_nametoindex(name)))
    # sk RefCnt Type Proto Iface R Rmem User Inode
    rows = [line.split() for line in Path("/proc/thread-self/net/packet").read_text().splitlines()[1:]]
    return {int(row[8]) for row in rows if row[4] in indexes}


def _inode(entry: Path) -> int | None:
    try:
        target = os.readlink(entry)
    except OSError:
        return None
    return int(target[len("socket:[") : -1]) if target.startswith("socket:[") else None


def _take(pidfd: int, number: int, wanted: set[int]) -> list[int]:
    fd = _LIBC.syscall(_SYS_PIDFD_GETFD, pidfd, number, 0)
    if fd < 0:
        return []
    if os.fstat(fd).st_ino in wanted:
        return [fd]
    os.close(fd)  # the number is another file's by now
    return []
