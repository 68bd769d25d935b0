# SPDX-License-Identifier: Apache-2.0
"""Errors of pvc, classed by who must act.

    PvcError            exit 1
      UsageError        exit 2   the caller of the command
      ConfigError       exit 3   the author of a configuration file
      JobError          exit 4   Slurm, or the request made of it
        EndedError               the cluster or its job has ended
        SuspendedError           the job is suspended, and its VMs with it
        JobTimeoutError          Slurm gave no nodes in the time that the caller gave
      StateError        exit 5   the state store (etcd)
      HostError         exit 6   a node: kernel, OVS, packages
        CommandError             a command that a node ran and that failed
      GuestError        exit 7   a VM: QEMU, its image, its guest
        GuestTimeoutError        VMs needed longer than the time that the caller gave

The two of a time that ran out are Python's TimeoutError as well.

A message says what failed, on which object and why; ``hint`` is the next thing to do. ``str()`` gives
the message followed by the messages of its causes ("a: b: c").
"""

from __future__ import annotations

import errno
import os
import re
import shlex
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


class PvcError(Exception):
    """Base of every error that a user may see."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        parts = [self.message]
        cause = self.__cause__
        while cause is not None:
            text = cause.message if isinstance(cause, PvcError) else _os_text(cause)
            if text and text not in parts[-1]:
                parts.append(text)
            cause = cause.__cause__
        return ": ".join(parts)

    def find_hint(self) -> str | None:
        """The hint of this error, or of the nearest cause that has one."""
        error: BaseException | None = self
        while error is not None:
            if isinstance(error, PvcError) and error.hint:
                return error.hint
            error = error.__cause__
        return None


# What Python's ssl module adds to OpenSSL's words: "[SSL: WRONG_VERSION_NUMBER] wrong version number (_ssl.c:1007)".
_OF_SSL = re.compile(r"^\[[^]]*\] | \(_ssl\.c:\d+\)$|^_ssl\.c:\d+: ")


def _os_text(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        # What was done to a descriptor has its number there.
        where = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
        text = _OF_SSL.sub("", error.strerror)
        return f"{text} ({where})" if where else text
    return _OF_SSL.sub("", str(error)) or type(error).__name__


class UsageError(PvcError):
    """The command line or the request cannot be meant as written."""

    exit_code = 2


@dataclass(frozen=True, order=True)
class Problem:
    """One thing wrong in a configuration file; line is 1-based, 0 when the file as a whole is meant."""

    file: str
    line: int
    key: str
    text: str

    def __str__(self) -> str:
        if not self.file:  # told by another process, file and line included
            return self.text
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.key}: {self.text}" if self.key else f"{place}: {self.text}"


# A generated file can have thousands, and each would be a line of a node's log at each job.
_MOST_PROBLEMS = 40


class ConfigError(PvcError):
    """Configuration files are wrong; ``problems`` lists all that is wrong at once, the message the first of them."""

    exit_code = 3

    def __init__(self, problems: Sequence[Problem], *, hint: str | None = None) -> None:
        self.problems = tuple(sorted(problems))
        shown = [str(problem) for problem in self.problems[:_MOST_PROBLEMS]]
        if len(self.problems) > _MOST_PROBLEMS:
            shown.append(f"and {len(self.problems) - _MOST_PROBLEMS} more problems")
        super().__init__("\n".join(shown), hint=hint)


class JobError(PvcError):
    """Slurm refused, lost or ended the job."""

    exit_code = 4


class EndedError(JobError):
    """The cluster has ended, or its job has: whatever is asked of it, the answer is this."""


class SuspendedError(JobError):
    """The processes of the cluster's job stand still, so none of its supervisors answers."""


class JobTimeoutError(JobError, TimeoutError):
    """Slurm gave no nodes, or the VMs were not started, in the time that the caller gave."""


class StateError(PvcError):
    """The state store does not answer, or refuses."""

    exit_code = 5


class HostError(PvcError):
    """Something of a node is missing or failed."""

    exit_code = 6


class CommandError(HostError):
    """A command on a host failed; carries what is needed to run it again by hand."""

    def __init__(self, argv: Sequence[str], returncode: int, stderr: str, *, hint: str | None = None) -> None:
        self.argv = tuple(argv)
        self.returncode = returncode
        self.stderr = stderr
        last = stderr.strip().splitlines()[-1] if stderr.strip() else "no message"
        super().__init__(f"{shlex.join(argv)} ended with {returncode}: {last}", hint=hint)


_LACKS = {errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.ENOBUFS, errno.EAGAIN, errno.EMFILE, errno.ENFILE}


def is_shortage(error: BaseException | None) -> bool:
    """Whether it comes of a lack of what a node's users share with its root: space, memory, processes.

    Users can bring that about, so it is no fault of the node.
    """
    while error is not None:
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _LACKS):
            return True
        # Nobody but the kernel, out of memory, kills what root runs.
        if isinstance(error, CommandError) and error.returncode == -signal.SIGKILL:
            return True
        error = error.__cause__
    return False


class GuestError(PvcError):
    """A VM did not start, died, or does not answer."""

    exit_code = 7


class GuestTimeoutError(GuestError, TimeoutError):
    """VMs needed longer than the time that the caller gave.

    ``gathered``: what there was by then, as the function that raises it says.
    """

    def __init__(self, message: str, *, hint: str | None = None, gathered: Any = None) -> None:
        super().__init__(message, hint=hint)
        self.gathered = gathered
