# SPDX-License-Identifier: Apache-2.0
"""What of an error crosses from one process to another: the only way from an exception to data and back.

Its class crosses as its exit code, so whoever gets it ends with the same code as whoever raised it. Its text crosses as
``str()`` gives it: causes are in it, and of configuration files the file and line of each problem. Subclasses such as
EndedError are of the process that raises them and become their base class, for they say how that process came to know.

On a line of JSON it is ``{"ok": false, "error": …, "exit_code": …, "hint": …}``, in the words of a CLOSE of
pvc-agent(7) ``error``, ``exit-code`` and ``hint``, in an event ``detail``, ``exit_code`` and ``hint``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pvc.errors import (
    ConfigError,
    GuestError,
    HostError,
    JobError,
    Problem,
    PvcError,
    StateError,
    UsageError,
)
from pvc.texts import clean_text

_KINDS: Mapping[int, type[PvcError]] = {
    kind.exit_code: kind for kind in (PvcError, UsageError, JobError, StateError, HostError, GuestError)
}
# In the words of a CLOSE: who said it, where it was not the guest, and the exit code.
FROM, CODE = "from", "exit-code"
SUPERVISOR, CONNECTION = "supervisor", "connection"
_OURS = (SUPERVISOR, CONNECTION)


@dataclass(frozen=True)
class Failure:
    """An error, as it is told."""

    exit_code: int
    error: str
    hint: str | None = None

    @classmethod
    def of(cls, err: PvcError) -> Failure:
        """What is told of an error."""
        return cls(err.exit_code, str(err), err.find_hint())

    @classmethod
    def of_data(cls, data: Mapping[str, Any]) -> Failure:
        """What another process has told, perhaps of another version, so what is not known here is passed over.

        Without an exit code the node is at fault, for it sent no proper answer.

        :raise ValueError: it tells no error.
        """
        code, error, hint = data.get("exit_code", HostError.exit_code), data.get("error"), data.get("hint")
        if not isinstance(error, str) or not isinstance(hint, str | None):
            raise ValueError("an error without a text")
        return cls(code if type(code) is int else PvcError.exit_code, error, hint)

    @classmethod
    def of_words(cls, words: Mapping[str, str]) -> Failure | None:
        """What the words of a CLOSE tell, None: no error. Guests may write what they like, and their class is one."""
        if "error" not in words:
            return None
        code = words.get(CODE, "")
        ours = words.get(FROM) in _OURS and code.isdecimal() and len(code) < 4
        hint = clean_text(words["hint"]) if words.get("hint") else None
        return cls(int(code) if ours else GuestError.exit_code, clean_text(words["error"]), hint)

    def words(self, who: str) -> list[tuple[str, str]]:
        """As words of a CLOSE; ``who``: SUPERVISOR or CONNECTION."""
        hint = [("hint", self.hint)] if self.hint else []
        return [("error", self.error), (FROM, who), (CODE, str(self.exit_code)), *hint]

    def data(self) -> dict[str, Any]:
        """As a line of JSON."""
        return {"ok": False, "error": self.error, "exit_code": self.exit_code, "hint": self.hint}

    def about(self, what: str) -> Failure:
        """The same, told of an object: a node, a VM."""
        return replace(self, error=f"{what}: {self.error}")

    def rebuild(self) -> PvcError:
        """The error. A code that no class has stays, for a signal or another program may be behind it."""
        if self.exit_code == ConfigError.exit_code:
            return ConfigError([Problem("", 0, "", self.error)], hint=self.hint)
        error = _KINDS.get(self.exit_code, PvcError)(self.error, hint=self.hint)
        if 0 < self.exit_code < 256:
            error.exit_code = self.exit_code
        return error


def is_of_guest(words: Mapping[str, str]) -> bool:
    """Whether the words of a CLOSE are the guest's own."""
    return words.get(FROM) not in _OURS


def is_lost(words: Mapping[str, str]) -> bool:
    """Whether the words of a CLOSE are there because the connection to the supervisor broke."""
    return words.get(FROM) == CONNECTION


def drop_claims(words: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The words of a guest's CLOSE without those that only a supervisor may say."""
    return [pair for pair in words if pair[0] not in (FROM, CODE)]
