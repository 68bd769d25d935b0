# SPDX-License-Identifier: Apache-2.0
"""Named network namespaces that only root can open, and running a function inside one.

The kernel's files of namespaces are readable by all, and chmod(2) is refused: whoever opens one keeps it. So they are
bound in a directory of root's alone, with a link to each where ip-netns(8) looks.

setns(2) moves one thread, so each call runs in a thread of its own and the process stays where it is.
A socket made inside remains bound to the namespace.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from pvc.errors import HostError
from pvc.host import linkbatch

LOG = logging.getLogger(__name__)
T = TypeVar("T")

DIRECTORY = Path("/run/pvc/netns")
LINKS = Path("/run/netns")
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
        fd = open_named(name)
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
    target, link = path_of(name), LINKS / name
    ensure_directory()
    if not link.is_symlink():
        link.symlink_to(target)
    if target.exists() and os.path.ismount(target):
        return
    target.touch(mode=0o400)

    def make() -> None:
        what = f"cannot make network namespace {name}"
        _check(_LIBC.unshare(_CLONE_NEWNET), what)
        _check(_LIBC.mount(b"/proc/thread-self/ns/net", os.fsencode(target), None, _MS_BIND, None), what)

    _in_thread(make)


def remove(name: str) -> None:
    """Unbind the namespace, and delete all of its devices soon. Absent is fine.

    The kernel ends it with its last process or socket: a user who kept the descriptor of a tap keeps an empty one.
    Copies of this mount in other mount namespaces go with the file that it is on.

    :raise HostError: it could not be unbound.
    """
    if exists(name):
        _empty_soon(name, open_named(name))
    for target in (path_of(name), LINKS / name):
        if _is_bound(target):
            _check(_LIBC.umount2(os.fsencode(target), _MNT_DETACH), f"cannot unbind network namespace {name}")
        with suppress(FileNotFoundError):
            target.unlink()


def list_names() -> list[str]:
    """All namespaces that are bound there."""
    try:
        return [entry.name for entry in os.scandir(DIRECTORY)]
    except FileNotFoundError:
        return []


def exists(name: str) -> bool:
    """Whether the namespace is bound."""
    return _is_bound(path_of(name)) or _is_bound(LINKS / name)


def open_named(name: str) -> int:
    """A descriptor of the namespace.

    :raise HostError: there is none.
    """
    # Those of clusters that earlier versions set up are bound where the links are.
    path = LINKS / name if not path_of(name).exists() and _is_bound(LINKS / name) else path_of(name)
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as err:
        raise HostError(f"cannot enter network namespace {name}") from err


def ensure_directory() -> None:
    """Make the place where namespaces are bound.

    :raise HostError: the kernel refused.
    """
    # A shared mount, as ip-netns(8) makes its own, so that unbinding reaches every mount namespace; without it a
    # daemon with a mount namespace of its own would keep dead namespaces alive.
    LINKS.mkdir(mode=0o755, parents=True, exist_ok=True)
    DIRECTORY.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    DIRECTORY.mkdir(mode=0o700, exist_ok=True)
    DIRECTORY.chmod(0o700)
    where = os.fsencode(DIRECTORY)
    if not _is_mount_point(DIRECTORY):
        _check(_LIBC.mount(where, where, None, _MS_BIND | _MS_REC, None), f"cannot bind {DIRECTORY}")
        _check(_LIBC.mount(None, where, None, _MS_SHARED | _MS_REC, None), f"cannot share {DIRECTORY}")


def _is_bound(path: Path) -> bool:
    """Whether a namespace is bound there itself; a link leads to one."""
    return os.path.ismount(path) and not path.is_symlink()


def _empty_soon(name: str, fd: int) -> None:
    """A bridge waits for the kernel's other processors at each of its ports; nobody has to wait for that."""
    try:
        threading.Thread(target=_empty, args=(name, fd), name=f"empty {name}").start()
    except RuntimeError as err:  # users have all processes
        os.close(fd)
        LOG.warning("network namespace %s is left to the kernel: %s", name, err)


def _empty(name: str, fd: int) -> None:
    try:
        _check(_LIBC.setns(fd, _CLONE_NEWNET), f"cannot enter network namespace {name}")
        linkbatch.remove_all()
    except HostError as err:
        # Without a user who keeps it the kernel deletes them all the same.
        LOG.warning("%s: %s", err, err.__cause__)
    finally:
        os.close(fd)


def _is_mount_point(path: Path) -> bool:
    # os.path.ismount() does not see a directory bound onto itself; proc_pid_mountinfo(5) does.
    # Users name mounts (fusermount(1)), in any bytes but a newline, so it need not be text.
    lines = Path("/proc/thread-self/mountinfo").read_bytes().split(b"\n")
    return any(line.split(b" ", 5)[4:5] == [os.fsencode(path)] for line in lines)


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
    try:
        thread.start()
    except RuntimeError as err:
        raise HostError("cannot start a thread") from OSError(errno.EAGAIN, str(err))
    thread.join()
    if errors:
        raise errors[0]
    return values[0]
