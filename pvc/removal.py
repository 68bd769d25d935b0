# SPDX-License-Identifier: Apache-2.0
"""Removing trees that somebody else made, and may be writing to: without recursion, and step by step.

All directories are closed to everybody else and moved up to the top first, then each is emptied; so however deep a tree
is, two descriptors are open and nothing grows but the top's list of names. All is done by names below descriptors: no
symbolic link is followed and no mount entered, whatever is exchanged meanwhile. What is on the disk is all the state
there is: one that was stopped, or killed, goes on by beginning again.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count

from pvc.beneath import open_beneath

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_NOT_EMPTY = {errno.ENOTEMPTY, errno.EEXIST}
_TAKEN = _NOT_EMPTY | {errno.ENOTDIR, errno.EISDIR}
_TRIES = 1000
# Nothing can be moved out of a subvolume (btrfs) or into a project (ext4, XFS): it is a top of its own.
_MAX_TOPS = 8
# Names kept in memory; what is more is found again.
_MAX_KEPT = 10_000
_NUMBERS = count()
# What a client of NFS, or FUSE, calls a file that was removed and that somebody has open. Removed, it has another such
# name, without end.
_OPEN_ONES = (".nfs", ".fuse_hidden")


class Removal:
    """Removes all that is in the directory ``top``, a descriptor that stays the caller's.

    ``stopped`` is asked before each step. ``detach(directory, name)`` takes a mount away and says whether there was
    one; without it a mount is something that cannot be removed.
    """

    def __init__(
        self,
        top: int,
        stopped: Callable[[], bool] = lambda: False,
        detach: Callable[[int, str], bool] | None = None,
        tops: int = 1,
    ) -> None:
        self._top = top
        self._stopped = stopped
        self._detach = detach
        self._tops = tops
        self._steps = 0
        self._crossed = False
        self._open_ones: set[tuple[int, int]] = set()
        self.error: OSError | None = None

    def run(self) -> bool:
        """Go on until all is gone, nothing more can be removed, or it is stopped; whether all is gone.

        ``error`` says why something could not be removed.
        """
        while True:
            self.error = None
            self._steps = 0
            found = 0
            try:
                # All are closed before anything is removed: who makes things as fast as they go ends with this.
                with os.scandir(self._top) as entries:
                    for entry in entries:
                        if entry.is_dir(follow_symlinks=False):
                            self._flatten(entry.name)
                for name in _names(self._top):
                    if self._stopped():
                        return False
                    found += 1
                    if self._is_full(self._top, name):
                        self._empty(name)
            except OSError as err:
                self._keep(err)
            if self._stopped():
                return False
            if not self._steps:
                return not found and self.error is None

    def _flatten(self, name: str) -> None:
        """Close a directory of the top's and all below it, and make these the top's, too."""
        next_ones = [name]
        while next_ones and not self._stopped():
            try:
                fd = open_closed(self._top, next_ones.pop())
            except OSError:
                continue  # no directory, or one that is told of when it cannot be removed
            try:
                with os.scandir(fd) as entries:
                    for entry in entries:
                        if self._stopped():
                            return
                        # As the directory says: nothing that is mounted there is asked.
                        if entry.is_dir(follow_symlinks=False):
                            lifted = self._lift(fd, entry.name)
                            if lifted and len(next_ones) < _MAX_KEPT:
                                next_ones.append(lifted)
            except OSError as err:
                self._keep(err)
            finally:
                os.close(fd)

    def _is_full(self, directory: int, name: str) -> bool:
        """Remove it; whether it is a directory with something in it, and so still there."""
        # Not by what kind of thing it is, which would be another moment's truth.
        try:
            if name.startswith(_OPEN_ONES) and self._is_open(directory, name):
                self.error = OSError(errno.EBUSY, "a program has a file in it open", name)
                return False
            os.unlink(name, dir_fd=directory)
        except FileNotFoundError:
            self._steps += 1
            return False
        except OSError as err:
            reason = err
        else:
            self._steps += 1
            return False
        try:
            os.rmdir(name, dir_fd=directory)
        except FileNotFoundError:
            pass
        except NotADirectoryError:
            self._keep(reason, directory, name)
            return False
        except OSError as err:
            if err.errno in _NOT_EMPTY:
                return True
            self._keep(err, directory, name)
            return False
        self._steps += 1
        return False

    def _is_open(self, directory: int, name: str) -> bool:
        """Whether it was removed before, and is back."""
        facts = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if stat.S_ISDIR(facts.st_mode) or len(self._open_ones) >= _MAX_KEPT:
            return False
        known = (facts.st_dev, facts.st_ino) in self._open_ones
        self._open_ones.add((facts.st_dev, facts.st_ino))
        return known

    def _empty(self, name: str) -> None:
        """Remove a directory of the top's; what directories it holds become the top's."""
        crossed = False
        try:
            fd = open_closed(self._top, name)
        except OSError as err:
            self._keep(err, self._top, name)
            return
        try:
            for child in _names(fd):
                if self._stopped():
                    return
                if self._is_full(fd, child) and not self._lift(fd, child):
                    crossed = crossed or self._crossed
            if crossed and self._tops < _MAX_TOPS:
                below = Removal(fd, self._stopped, self._detach, self._tops + 1)
                below.run()
                self._steps += below._steps
                self.error = below.error or self.error
        finally:
            os.close(fd)
        self._is_full(self._top, name)

    def _lift(self, directory: int, name: str) -> str:
        """Close a directory and make it one of the top's; what it is called there, "" if it is not there."""
        self._crossed = False
        try:
            os.close(open_closed(directory, name))
            for _ in range(_TRIES):
                target = f"{os.getpid()}.{next(_NUMBERS)}"
                try:
                    os.rename(name, target, src_dir_fd=directory, dst_dir_fd=self._top)
                except OSError as err:
                    if err.errno not in _TAKEN:
                        raise
                    continue
                self._steps += 1
                return target
        except FileNotFoundError:
            pass
        except OSError as err:
            # A subvolume's directories cannot leave it; a mount says the same, and is told of when it is removed.
            self._crossed = err.errno == errno.EXDEV
            if not self._crossed:
                self._keep(err, directory, name)
        return ""

    def _keep(self, err: OSError, directory: int | None = None, name: str = "") -> None:
        # EBUSY: something is mounted there; EXDEV: it was, when we were about to enter
        if self._detach and directory is not None and err.errno in {errno.EBUSY, errno.EXDEV}:
            with suppress(OSError):
                if self._detach(directory, name):
                    self._steps += 1
                    return
        self.error = err


def open_closed(directory: int, name: str) -> int:
    """Open a directory and close it to everybody else: from here on nobody makes anything in it.

    Descriptors and working directories that others have in it are of no use to them, for rights are those of the moment
    in which something is made.

    :raise OSError: it cannot be opened. EXDEV: something is mounted there.
    """
    try:
        fd = open_beneath(directory, name, _DIRECTORY, same_mount=True)
    except PermissionError:
        handle = open_beneath(directory, name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, same_mount=True)
        try:
            os.chmod(f"/proc/self/fd/{handle}", 0o700)
        finally:
            os.close(handle)
        fd = open_beneath(directory, name, _DIRECTORY, same_mount=True)
    # Who is neither its owner nor root removes what they may.
    with suppress(OSError):
        os.fchown(fd, os.geteuid(), -1)
    with suppress(OSError):
        os.fchmod(fd, 0o700)
    return fd


def remove(path: str | os.PathLike[str]) -> None:
    """Remove a directory and all below it, or a symbolic link; absent is fine.

    :raise OSError: something could not be removed.
    """
    head, name = os.path.split(os.path.abspath(path))
    try:
        parent = os.open(head, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        _remove(parent, name)
    finally:
        os.close(parent)


def _remove(parent: int, name: str) -> None:
    try:
        top = open_closed(parent, name)
    except FileNotFoundError:
        return
    except OSError as err:
        if err.errno not in {errno.ELOOP, errno.ENOTDIR}:
            raise
        with suppress(FileNotFoundError):
            if not stat.S_ISLNK(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
                raise
            os.unlink(name, dir_fd=parent)
        return
    try:
        for _ in range(_TRIES):
            removal = Removal(top)
            if not removal.run() and removal.error is not None:
                raise removal.error
            try:
                os.rmdir(name, dir_fd=parent)
            except FileNotFoundError:
                return
            except OSError as err:
                # Who had it open when it was closed has made one thing more.
                if err.errno not in _NOT_EMPTY:
                    raise
                continue
            return
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), name)
    finally:
        os.close(top)


def _names(directory: int) -> Iterator[str]:
    with os.scandir(directory) as entries:
        for entry in entries:
            yield entry.name
