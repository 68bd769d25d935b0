# SPDX-License-Identifier: Apache-2.0
"""The step of supervisors, seen from the launcher: one srun, its input, its events."""

from __future__ import annotations

import logging
import os
import re
import signal
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Protocol

from pvc import codec, run
from pvc.model.cluster import LAUNCH, ClusterSpec
from pvc.model.event import Event
from pvc.model.words import BYE
from pvc.ops.loop import Loop
from pvc.slurm.nodes import expand_nodes
from pvc.slurm.submit import step_environment, supervisors_argv

LOG = logging.getLogger(__name__)
_REMEMBERED = 40
_LOST_TASK = re.compile(r"^srun: error: (?P<nodes>\S+): tasks? [\d,\[\]-]+: (?P<why>.+)$")
# Slurm would not start the task, and ends the others for that.
_REFUSED = re.compile(r"^srun: error: Task launch for StepId=\S+ failed on node (?P<nodes>\S+): (?P<why>.+)$")
_LOST_NODE = re.compile(r"^srun: error: (?P<why>Node failure) on (?P<nodes>\S+)$")


class Watcher(Protocol):
    """Who is told what happens in the step."""

    def on_event(self, event: Event) -> None:
        """A supervisor has said something."""

    def on_lost(self, node: str, why: str) -> None:
        """A supervisor has died, says srun."""


def parse_lost_tasks(line: str) -> list[tuple[str, str]]:
    """Nodes whose task has failed, and how, in a line of srun's: "srun: error: n[2-3]: tasks 1-2: Killed"."""
    match = _LOST_TASK.match(line) or _REFUSED.match(line) or _LOST_NODE.match(line)
    if match is None:
        return []
    try:
        return [(node, match["why"].strip()) for node in expand_nodes(match["nodes"])]
    except ValueError:
        return []


class Supervisors:
    """The supervisors of all nodes: one step for an ordinary job, one for each component of a heterogeneous job.

    A step across components (srun --het-group=0-1) would be as many steps for Slurm, but one srun for us that
    says less of each.
    """

    def __init__(self, components: Sequence[Sequence[str]], pvc: str, loop: Loop, watcher: Watcher, log: Path) -> None:
        """Start them on the nodes of each component; see ``_Step``.

        :raise HostError: there is no srun.
        """
        self._loop = loop
        self.messages: deque[str] = deque(maxlen=_REMEMBERED)
        self._steps: list[_Step] = []
        for index, nodes in enumerate(components):
            argv = supervisors_argv(nodes, [pvc, "supervise"], index if len(components) > 1 else None)
            self._steps.append(_Step(argv, loop, watcher, log, self.messages))

    def send(self, spec: ClusterSpec) -> None:
        """Give all of them the description; their input stays open as the sign that this launcher lives."""
        line = LAUNCH.dumps(spec).encode() + b"\n"
        for step in self._steps:
            step.send(line)

    def tell(self, word: bytes) -> None:
        """Give all of them a word of ``model/words.py``."""
        for step in self._steps:
            step.tell(word)

    @property
    def has_ended(self) -> bool:
        """All steps are gone and all they said was read."""
        return all(step.has_ended for step in self._steps)

    def list_ended(self) -> list[int]:
        """The components whose step is gone."""
        return [index for index, step in enumerate(self._steps) if step.has_ended]

    def stop(self, timeout_s: float, *, goodbye: bool) -> None:
        """Close their input, which ends them and their VMs at once; kill srun when it does not end.

        ``goodbye`` False: the job is to end with them, even if this launcher is killed before it can see to that.
        """
        for step in self._steps:
            step.close_input(goodbye=goodbye)
        for number, patience_s in ((None, timeout_s), (signal.SIGTERM, 3.0), (signal.SIGKILL, 3.0)):
            for step in self._steps:
                step.send_signal(number)
            if self._loop.run_until(lambda: self.has_ended, timeout_s=patience_s):
                break
        for step in self._steps:
            step.close()


class _Step:
    """srun in a session of its own, so that the terminal's Ctrl-C is not for it."""

    def __init__(self, argv: Sequence[str], loop: Loop, watcher: Watcher, log: Path, messages: deque[str]) -> None:
        """Start it; each task reads the cluster's description from standard input once ``send`` gave it.

        :raise HostError: there is no srun.
        """
        self._loop = loop
        self._watcher = watcher
        self._log: IO[bytes] = log.open("ab", buffering=0)
        self._messages = messages
        (out, out_end), (err, err_end) = os.pipe(), os.pipe()
        try:
            self._process = run.spawn(
                argv,
                env=step_environment(os.environ),
                stdin=run.PIPE,
                stdout=out_end,
                stderr=err_end,
                # It holds the readers of its own output: once there is none it kills the step (26.05), before the
                # supervisors, who hear of the launcher's end by their input, could give the job back.
                pass_fds=(out, err),
                new_session=True,
            )
        except BaseException:
            os.close(out)
            os.close(err)
            raise
        finally:
            os.close(out_end)
            os.close(err_end)
        assert self._process.stdin is not None
        self._stdin = self._process.stdin
        self._unsent = memoryview(b"")
        self._open: set[int] = set()
        self._pidfd = os.pidfd_open(self._process.pid)
        loop.add(self._pidfd, self._reap)
        self._watch(out, self._take_event)
        self._watch(err, self._take_message)

    def _watch(self, fd: int, take: Callable[[bytes], None]) -> None:
        os.set_blocking(fd, False)
        self._open.add(fd)
        self._loop.add(fd, _LineReader(fd, take, self._closed).read)

    def send(self, line: bytes) -> None:
        """Give every task the line."""
        self._unsent = memoryview(line)
        os.set_blocking(self._stdin.fileno(), False)
        self._loop.add_writer(self._stdin.fileno(), self._write)

    def _write(self) -> None:
        try:
            sent = os.write(self._stdin.fileno(), self._unsent)
        except BlockingIOError:
            return
        except OSError:
            LOG.debug("srun closed its input early")
            sent = len(self._unsent)
        self._unsent = self._unsent[sent:]
        if not self._unsent:
            self._loop.remove(self._stdin.fileno())

    @property
    def has_ended(self) -> bool:
        """Srun is gone and all it said was read."""
        return not self._open and self._process.poll() is not None

    def close_input(self, *, goodbye: bool) -> None:
        """Tell the tasks to end."""
        if self._stdin.closed:
            return
        self._loop.remove(self._stdin.fileno())
        with suppress(OSError):
            if goodbye and not self._unsent:
                os.write(self._stdin.fileno(), BYE)
        self._stdin.close()

    def tell(self, word: bytes) -> None:
        """Give the tasks a word, unless they are about to hear more than that."""
        if not self._stdin.closed and not self._unsent:
            with suppress(OSError):
                os.write(self._stdin.fileno(), word)

    def send_signal(self, number: signal.Signals | None) -> None:
        """To an srun that still runs."""
        if number is not None and self._process.poll() is None:
            LOG.warning("the supervisors do not end; sending %s to srun", number.name)
            self._process.send_signal(number)

    def close(self) -> None:
        """Forget it."""
        for fd in tuple(self._open):
            self._closed(fd)
        self._loop.remove(self._pidfd)
        os.close(self._pidfd)
        self._log.close()

    def _reap(self) -> None:
        self._process.poll()
        self._loop.remove(self._pidfd)

    def _take_event(self, line: bytes) -> None:
        try:
            event = codec.loads(Event, line)
        except (ValueError, RecursionError):
            self._take_message(line)
            return
        self._watcher.on_event(event)

    def _take_message(self, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip()
        if text:
            self._messages.append(text)
            self._log.write(text.encode() + b"\n")
            for node, why in parse_lost_tasks(text):
                self._watcher.on_lost(node, why)

    def _closed(self, fd: int) -> None:
        self._open.discard(fd)
        self._loop.remove(fd)
        os.close(fd)


class _LineReader:
    """Cuts a non-blocking pipe into lines."""

    def __init__(self, fd: int, take: Callable[[bytes], None], closed: Callable[[int], None]) -> None:
        self._fd = fd
        self._take = take
        self._closed = closed
        self._rest = b""

    def read(self) -> None:
        """Take what is there."""
        try:
            data = os.read(self._fd, 1 << 16)
        except BlockingIOError:
            return
        if not data:
            if self._rest:
                self._take(self._rest)
            self._closed(self._fd)
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._take(line)
