"""Errors of pvc, classed by who must act.

    PvcError            exit 1
      UsageError        exit 2   the caller of the command
      ConfigError       exit 3   the author of a configuration file
      JobError          exit 4   Slurm, or the request made of it
      StateError        exit 5   the state store (etcd)
      HostError         exit 6   a node: kernel, OVS, packages
        CommandError             a command that a node ran and that failed
      GuestError        exit 7   a VM: QEMU, its image, its guest

A message says what failed, on which object and why; ``hint`` is the next thing to do. ``str()`` gives
the message followed by the messages of its causes ("a: b: c").
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass


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


def _os_text(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror} ({error.filename})" if error.filename else error.strerror
    return str(error) or type(error).__name__


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
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.key}: {self.text}" if self.key else f"{place}: {self.text}"


class ConfigError(PvcError):
    """Configuration files are wrong; ``problems`` lists all that is wrong at once."""

    exit_code = 3

    def __init__(self, problems: Sequence[Problem], *, hint: str | None = None) -> None:
        self.problems = tuple(sorted(problems))
        super().__init__("\n".join(str(problem) for problem in self.problems), hint=hint)


class JobError(PvcError):
    """Slurm refused, lost or ended the job."""

    exit_code = 4


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


class GuestError(PvcError):
    """A VM did not start, died, or does not answer."""

    exit_code = 7
