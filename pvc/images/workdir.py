# SPDX-License-Identifier: Apache-2.0
"""Directories for what is unfinished outside of repositories: held by a lock, so that a dead owner's are known."""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pvc import files
from pvc.errors import HostError


@contextmanager
def work_directory(prefix: str, parent: Path | None = None) -> Iterator[Path]:
    """A new directory of our own, gone at the end; those of processes that were killed go first.

    ``parent``: where, by default in TMPDIR. Its mode is 0700.

    :raise HostError: it cannot be made.
    """
    base = parent or Path(tempfile.gettempdir())
    start = f"{prefix}{os.geteuid()}-"
    try:
        base.mkdir(parents=True, exist_ok=True)
        _sweep(base, start)
        path = Path(tempfile.mkdtemp(prefix=start, dir=base))
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as err:
        raise HostError(f"cannot make a directory in {base}") from err
    try:
        with suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield path
    finally:
        files.remove_tree(path)
        os.close(fd)


def _sweep(base: Path, start: str) -> None:
    """Remove directories of this name and user whose lock is free."""
    for path in base.glob(f"{start}*"):
        with suppress(OSError):
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Its maker may not have the lock yet.
                if os.fstat(fd).st_uid == os.geteuid() and _is_old(fd):
                    files.remove_tree(path)
            finally:
                os.close(fd)


def _is_old(fd: int) -> bool:
    return time.time() - os.fstat(fd).st_mtime > 1.0
