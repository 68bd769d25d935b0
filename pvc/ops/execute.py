# SPDX-License-Identifier: Apache-2.0
"""Commands in guests, by their agents: one or many at once, with their input, output and exit codes."""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import sys
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pvc.channel.frames import MAX_PAYLOAD
from pvc.errors import GuestError, PvcError, UsageError
from pvc.model.failure import Failure, is_lost, is_of_guest
from pvc.ops.agents import Agents, Stream, Words
from pvc.ops.control import Control
from pvc.ops.loop import Loop
from pvc.ops.status import find_node
from pvc.parse import parse_count
from pvc.texts import clean_text

TIMED_OUT = 124  # as timeout(1)
_CHUNK = 1 << 16
# Input is read no faster than the slowest guest takes it.
_PENDING = 1 << 18
_HANGUP_S = 10.0
_MAX_NUMBER = (1 << 32) - 1
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGWINCH)

OnOutput = Callable[[int, bytes, bool], None]


@dataclass(frozen=True)
class Command:
    """What to run; ``argv`` empty: the user's login shell. ``attach``: take up a detached command instead."""

    argv: tuple[str, ...]
    user: str = "root"
    cwd: str | None = None
    env: tuple[str, ...] = ()
    pty: bool = False
    detach: bool = False
    attach: int | None = None
    stdin: bool = True

    def words(self) -> list[tuple[str, str]]:
        """The request."""
        if self.attach is not None:
            words = [("op", "attach"), ("id", str(self.attach))]
            return words + (list(size_words()) if self.pty else [])
        words = [("op", "exec"), ("user", self.user), *(("arg", word) for word in self.argv)]
        words += [("env", each) for each in self.env]
        if self.cwd is not None:
            words.append(("cwd", self.cwd))
        if self.detach:
            words.append(("detach", "1"))
        if not self.stdin:
            words.append(("stdin", "0"))
        if self.pty:
            words += [("pty", "1"), ("term", os.environ.get("TERM") or "dumb"), *size_words()]
        return words


@dataclass(frozen=True)
class Outcome:
    """How a command ended in one VM; ``id`` is its number there, for ``attach``.

    ``failure``: why it did not. ``late``: the time ran out.
    """

    rank: int
    name: str
    node: str
    exit: int | None = None
    signal: int | None = None
    failure: Failure | None = None
    id: int | None = None
    detached: bool = False
    late: bool = False

    @property
    def error(self) -> str | None:
        """What went wrong, in words."""
        return None if self.failure is None else self.failure.error

    @property
    def hint(self) -> str | None:
        """What to do about it."""
        return None if self.failure is None else self.failure.hint

    @property
    def code(self) -> int:
        """As a shell would say it: the exit code, 128 and the signal, 124 if the time ran out, that of an error."""
        if self.exit is not None:
            return self.exit
        if self.signal is not None:
            return 128 + self.signal
        if self.detached:
            return 0
        return TIMED_OUT if self.late or self.failure is None else self.failure.exit_code


_TOO_LATE = Failure(GuestError.exit_code, "the time ran out")
_NO_END = Failure(GuestError.exit_code, "the agent does not say how it ended")


def check_length(command: Command) -> None:
    """:raise UsageError: a request to an agent has no room for it."""
    # Keys, signs and zeros, and the VM's number.
    words = [("vm", str(_MAX_NUMBER)), *command.words()]
    size = sum(len(key) + len(os.fsencode(value)) + 2 for key, value in words)
    if size > MAX_PAYLOAD:
        raise UsageError(
            f"the command has {size} bytes with its words and variables; at most {MAX_PAYLOAD} can be sent",
            hint="give it as input: pvc exec vm0 -- sh < SCRIPT, or pvc exec vm0 -- xargs COMMAND < WORDS",
        )


def parse_end(words: Mapping[str, str]) -> tuple[int | None, int | None]:
    """The exit code and the signal that a guest tells of a command, each None where it tells none."""
    code, number = (parse_count(words.get(key, ""), _MAX_NUMBER) for key in ("exit", "signal"))
    return (None if code is None else code & 0xFF), (None if number is None else number & 0x7F)


def size_words() -> Words:
    """The size of our terminal."""
    for stream in (sys.stdout, sys.stdin, sys.stderr):
        try:
            packed = fcntl.ioctl(stream.fileno(), termios.TIOCGWINSZ, bytes(8))
        except (OSError, ValueError):
            continue
        rows, columns = struct.unpack("HHHH", packed)[:2]
        if rows and columns:
            return [("rows", str(rows)), ("cols", str(columns))]
    return [("rows", "24"), ("cols", "80")]


class _Running(Stream):
    """One VM's command."""

    def __init__(self, runner: Runner) -> None:
        super().__init__()
        self.id: int | None = None
        self.detached = False
        self.late = False
        self._runner = runner

    def on_note(self, words: dict[str, str]) -> None:
        number = parse_count(words.get("id", ""), _MAX_NUMBER)
        if number is not None:
            self.id = number
        if self._runner.command.detach and self.id is not None:
            # It runs, and goes on without us.
            self.detached = True
            self.close()

    def on_data(self, data: bytes, second: bool) -> None:
        self._runner.on_output(self.rank, data, second)

    def on_moved(self) -> None:
        self._runner.feed()

    def on_close(self, words: dict[str, str]) -> None:
        del words
        self._runner.left -= 1
        self._runner.feed()


class Runner:
    """Runs one command in VMs; made for one use. Its input is read from ``stdin_fd``, or is ``data``."""

    def __init__(
        self,
        control: Control,
        command: Command,
        on_output: OnOutput,
        stdin_fd: int | None,
        data: bytes | None = None,
    ) -> None:
        self.command = command
        self.on_output = on_output
        self.left = 0
        self._control = control
        self._stdin = stdin_fd
        self._data = data
        self._reading = False
        self._ended = False
        self._streams: dict[int, _Running] = {}
        self._refused: dict[int, PvcError] = {}
        self._signals: list[signal.Signals] = []
        self._leaves = False
        self._escape = b"\r"
        self._loop: Loop | None = None

    def run(
        self, ranks: Sequence[int], timeout_s: float | None, signals: Sequence[signal.Signals] = SIGNALS
    ) -> list[Outcome]:
        """The outcomes, in the order of ``ranks``.

        A first SIGINT, SIGTERM or SIGHUP goes to the commands, and how they end is told as ever.

        :raise UsageError: the command is longer than a request can be.
        :raise KeyboardInterrupt: it was interrupted a second time, or its terminal's user has left.
        :raise SystemExit: it was told to end a second time, or not long after its terminal had gone.
        :raise EndedError: the cluster has ended meanwhile, or before.
        """
        check_length(self.command)
        loop = self._loop = Loop(signals, self._on_signal)
        agents = Agents(self._control, loop, len(ranks))
        started = time.monotonic()
        words = self.command.words()
        try:
            broken = agents.connect(ranks)
            for rank in ranks:
                node = find_node(self._control.record, rank)
                if node in broken:
                    self._refused[rank] = broken[node]
                    continue
                stream = self._streams[rank] = _Running(self)
                self.left += 1
                agents.open(rank, words, stream)
                if self._data is not None:
                    stream.send(self._data)
                    stream.end()
            self.feed()
            left_s = None if timeout_s is None else max(0.0, timeout_s - (time.monotonic() - started))
            if not loop.run_until(self._is_over, timeout_s=left_s):
                self._give_up(loop)
            outcomes = [self._outcome(rank) for rank in ranks]
            if self._refused or any(is_lost(stream.result or {}) for stream in self._streams.values()):
                self._control.check_running()
            return outcomes
        finally:
            agents.close()
            loop.close()

    def _is_over(self) -> bool:
        if self._leaves or (len(self._signals) > 1 and self._signals[-1] is signal.SIGINT):
            raise KeyboardInterrupt
        if len(self._signals) > 1:
            raise SystemExit(128 + self._signals[-1])
        return self.left <= 0

    def _give_up(self, loop: Loop) -> None:
        for stream in self._streams.values():
            if not stream.closed:
                stream.late = True
                stream.close()
        # What was said goes out: the connection is closed behind it.
        loop.run_until(lambda: False, timeout_s=0.05)

    def _outcome(self, rank: int) -> Outcome:
        node = find_node(self._control.record, rank)
        base = Outcome(rank, f"vm{rank}", node)
        if rank in self._refused:
            return replace(base, failure=Failure.of(self._refused[rank]))
        stream = self._streams[rank]
        result = stream.result or {}
        base = replace(base, id=stream.id, detached=stream.detached)
        if stream.late:
            return replace(base, failure=_TOO_LATE, late=True)
        failure = Failure.of_words(result)
        if failure is not None:
            if self.command.attach is not None and is_of_guest(result):
                failure = replace(failure, hint=f"pvc exec -w vm{rank} --list shows those that there are")
            return replace(base, failure=failure)
        code, number = parse_end(result)
        if code is not None:
            return replace(base, exit=code)
        if number is not None:
            return replace(base, signal=number)
        return base if stream.detached else replace(base, failure=_NO_END)

    def feed(self) -> None:
        """Read input while all guests take it."""
        if self._loop is None or self._stdin is None or self._ended:
            return
        wanted = self.left > 0 and all(stream.pending < _PENDING for stream in self._streams.values())
        if wanted != self._reading:
            self._reading = wanted
            try:
                self._loop.watch(self._stdin, self._on_stdin, read=wanted, write=False)
            except PermissionError:
                # A file is always readable, and epoll(7) takes none.
                self._reading = False
                self._read_file()

    def _read_file(self) -> None:
        while not self._ended and all(stream.pending < _PENDING for stream in self._streams.values()) and self.left > 0:
            self._on_stdin()

    def _on_stdin(self) -> None:
        assert self._stdin is not None
        try:
            data = os.read(self._stdin, _CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if self.command.pty and self._is_farewell(data):
            self._leaves = True
            return
        for stream in self._streams.values():
            if data:
                stream.send(data)
            else:
                stream.end()
        if not data:
            self._ended = True
            if self._reading and self._loop is not None:
                self._loop.remove(self._stdin)
            return
        if self._reading:
            self.feed()

    def _is_farewell(self, data: bytes) -> bool:
        """As in ssh: ~. at the beginning of a line leaves."""
        self._escape = (self._escape + data)[-3:]
        return self._escape in (b"\r~.", b"\n~.")

    def _on_signal(self, number: signal.Signals) -> None:
        if number is signal.SIGWINCH:
            if self.command.pty:
                for stream in self._streams.values():
                    stream.note(size_words())
            return
        self._signals.append(number)
        if len(self._signals) > 1:
            return
        for stream in self._streams.values():
            stream.note([("signal", str(int(number)))])
        if number is signal.SIGHUP and self._loop is not None:
            # Nobody is there any more who could say it twice.
            self._loop.every(_HANGUP_S, lambda: self._signals.append(number))


def total_code(outcomes: Sequence[Outcome]) -> int:
    """For one VM its command's own; for many the largest, so 0 means that all succeeded."""
    return max((outcome.code for outcome in outcomes), default=0)


def list_detached(control: Control, ranks: Sequence[int], timeout_s: float) -> list[dict[str, Any]]:
    """Detached commands of these VMs: rank, id, pid, state, exit or signal, attached, argv.

    :raise PvcError: an agent does not answer.
    """
    from pvc.ops.agents import ask

    found: list[dict[str, Any]] = []
    with Loop((), lambda _: None) as loop, Agents(control, loop, len(ranks)) as agents:
        for rank in ranks:
            for note in ask(agents, loop, rank, [("op", "list")], timeout_s).notes:
                argv = [clean_text(part.removeprefix("arg=")) for part in note.get("command", "").split("\t")[1:]]
                shown = {key: clean_text(note.get(key, "")) for key in ("id", "pid", "state", "attached")}
                how = next(((key, note[key]) for key in ("exit", "signal") if key in note), None)
                result = None if how is None else f"{how[0]} {clean_text(how[1])}"
                found.append({"vm": f"vm{rank}", **shown, "result": result, "command": " ".join(argv)})
    return found
