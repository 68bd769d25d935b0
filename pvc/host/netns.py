"""Named network namespaces, as ip-netns(8) keeps them, and running a function inside one.

setns(2) moves one thread, so each call runs in a thread of its own and the process stays where it is.
A socket made inside remains bound to the namespace.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from pvc.errors import HostError

T = TypeVar("T")

DIRECTORY = Path("/run/netns")
_CLONE_NEWNET = 0x40000000
_MS_BIND = 4096
_MS_REC = 16384
_MS_SHARED = 1 << 20
_MNT_DETACH = 2
_LIBC = ctypes.CDLL(None, use_errno=True)


def path_of(name: str) -> Path:
    """Where the namespace of that name is bound."""
    return DIRECTORY / name


def run_inside(name: str | None, function: Callable[[], T]) -> T:
    """What ``function`` returns when run in the namespace ``name``; None is the caller's own.

    :raise HostError: there is no such namespace; and whatever ``function`` raises.
    """
    if name is None:
        return function()

    def enter() -> T:
        try:
            fd = os.open(path_of(name), os.O_RDONLY | os.O_CLOEXEC)
        except OSError as err:
            raise HostError(f"cannot enter network namespace {name}") from err
        try:
            _check(_LIBC.setns(fd, _CLONE_NEWNET), f"cannot enter network namespace {name}")
        finally:
            os.close(fd)
        return function()

    return _in_thread(enter)


def ensure(name: str) -> None:
    """Make the namespace unless it exists; its loopback is left down.

    :raise HostError: the kernel refused.
    """
    target = path_of(name)
    ensure_directory()
    if target.exists() and os.path.ismount(target):
        return
    target.touch(mode=0o444)

    def make() -> None:
        what = f"cannot make network namespace {name}"
        _check(_LIBC.unshare(_CLONE_NEWNET), what)
        _check(_LIBC.mount(b"/proc/thread-self/ns/net", os.fsencode(target), None, _MS_BIND, None), what)

    _in_thread(make)


def remove(name: str) -> None:
    """Unbind the namespace; the kernel ends it with its last process or socket. Absent is fine.

    :raise HostError: it could not be unbound.
    """
    target = path_of(name)
    if os.path.ismount(target):
        _check(_LIBC.umount2(os.fsencode(target), _MNT_DETACH), f"cannot unbind network namespace {name}")
    with suppress(FileNotFoundError):
        target.unlink()


def exists(name: str) -> bool:
    """Whether the namespace is bound."""
    return os.path.ismount(path_of(name))


def ensure_directory() -> None:
    """Make the place where namespaces are bound, as ip-netns(8) does.

    :raise HostError: the kernel refused.
    """
    # ip-netns(8) makes this a shared mount so that unbinding reaches every mount namespace; without it a
    # daemon with a mount namespace of its own would keep dead namespaces alive.
    DIRECTORY.mkdir(mode=0o755, parents=True, exist_ok=True)
    where = os.fsencode(DIRECTORY)
    if not _is_mount_point(DIRECTORY):
        _check(_LIBC.mount(where, where, None, _MS_BIND | _MS_REC, None), f"cannot bind {DIRECTORY}")
        _check(_LIBC.mount(None, where, None, _MS_SHARED | _MS_REC, None), f"cannot share {DIRECTORY}")


def _is_mount_point(path: Path) -> bool:
    # os.path.ismount() does not see a directory bound onto itself; proc_pid_mountinfo(5) does.
    lines = Path("/proc/thread-self/mountinfo").read_text().splitlines()
    return any(line.split(" ", 5)[4] == os.fspath(path) for line in lines)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise HostError(what) from OSError(number, os.strerror(number))


def _in_thread(function: Callable[[], T]) -> T:
    values: list[T] = []
    errors: list[BaseException] = []

    def body() -> None:
        try:
            values.append(function())
        except BaseException as err:  # noqa: BLE001 - carried over to the calling thread, which raises it
            errors.append(err)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return values[0]
