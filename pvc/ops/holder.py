# SPDX-License-Identifier: Apache-2.0
"""The job of a cluster that a program has allocated: it ends with the program."""

from __future__ import annotations

import os
import re
import select
import signal
import tempfile
import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO

from pvc import run
from pvc.errors import GuestError, HostError, JobError, JobTimeoutError, PvcError, UsageError
from pvc.model.failure import Failure
from pvc.slurm.job import cancel_job, read_queue

_END_S = 60.0
# What salloc tells of its job: "salloc: Pending job allocation 7".
_NUMBERED = re.compile(rb"job allocation (\d+)")
# How the job came and went is no reason why there is none.
_CHAT = re.compile(r"salloc: (?!error)")
_LIVING: weakref.WeakSet[Holder] = weakref.WeakSet()
# Those that nobody waited for; they are looked after when there is a next one, lest they stay as zombies.
_LEFT: list[run.Process[bytes]] = []


class Holder:
    """An alloc whose script waits for the end of its standard input, and so for the end of this process."""

    def __init__(self, argv: Sequence[str], environment: Mapping[str, str]) -> None:
        """:raise JobError: there is no salloc."""
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  open as long as the alloc
        self._job_id: int | None = None
        self._owner = os.getpid()
        _LEFT[:] = [each for each in _LEFT if each.poll() is None]
        try:
            self._process = run.spawn(
                argv,
                env=environment,
                stdin=run.PIPE,
                stdout=run.PIPE,
                stderr=self._stderr,
                new_session=True,
            )
        except HostError as err:
            self._stderr.close()
            raise JobError("cannot ask Slurm", hint="install Slurm's client commands on this machine") from err
        _LIVING.add(self)

    @property
    def ended(self) -> bool:
        """Whether ``end`` or ``let_go`` was called."""
        return self._stderr.closed

    def wait_ready(self, timeout_s: float | None) -> int:
        """The job's number, once its VMs run.

        :raise JobTimeoutError: they do not in this time; what Slurm says of the job is in it.
        :raise PvcError: they never will; what the launcher said.
        """
        assert self._process.stdout is not None
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        line = b""
        while not line.endswith(b"\n"):
            left_s = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not select.select([self._process.stdout], [], [], left_s)[0]:
                raise JobTimeoutError(f"the VMs do not run after {timeout_s:g} s: {self._ask_slurm()}")
            data = os.read(self._process.stdout.fileno(), 4096)
            if not data:
                self._process.wait()
                raise self._explain()
            line += data
        self._job_id = int(line)
        return self._job_id

    def end(self) -> None:
        """Let the job end, and see to it; in a child of this program nothing is done."""
        if self.ended:
            return
        if self._owner != os.getpid():
            self.let_go()
            return
        self._close_pipes()
        if self._job_id is None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)  # salloc that waits for nodes gives up
        try:
            self._process.wait(_END_S)
        except run.TimeoutExpired:
            if self._job_id is not None:
                cancel_job(self._job_id)
            self._process.kill()
            self._process.wait()
        self._stderr.close()

    def let_go(self) -> None:
        """Close this process's ends of the pipes, and wait for nothing: the job ends once no other has one open."""
        self._close_pipes()
        self._stderr.close()
        _LEFT.append(self._process)

    def _close_pipes(self) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(OSError):
                    stream.close()

    def _read_stderr(self) -> bytes:
        self._stderr.seek(0)
        return self._stderr.read()

    def _ask_slurm(self) -> str:
        """How far the job is, in words."""
        found = _NUMBERED.findall(self._read_stderr())
        if not found:
            return "Slurm has made no job of it yet"
        job_id = int(found[-1])
        try:
            jobs = [job for job in read_queue() if job.job_id == job_id]
        except JobError as err:
            return str(err)
        if not jobs:
            return f"Slurm has no job {job_id} any more"
        state, reason = jobs[0].state.lower(), jobs[0].reason
        return f"job {job_id} is {state}{'' if reason in ('', 'None') else f' ({reason})'}"

    def _explain(self) -> PvcError:
        lines = self._read_stderr().decode(errors="replace").splitlines()
        said = [line.removeprefix("pvc: ") for line in lines if line.startswith("pvc: ")]
        lines = [line for line in lines if not _CHAT.match(line)]
        hint = next((line.removeprefix("hint: ") for line in lines if line.startswith("hint: ")), None)
        code = self._process.returncode
        text = said[-1] if said else lines[-1] if lines else f"salloc ended with {code}"
        # Other codes are salloc's own, or of a signal that ended it.
        known = UsageError.exit_code <= code <= GuestError.exit_code
        return Failure(code if known else JobError.exit_code, text, hint).rebuild()


def _leave_to_parent() -> None:
    """In a child that was forked: its copies of the pipes would keep the jobs of a parent that was killed."""
    for holder in list(_LIVING):
        holder.let_go()


os.register_at_fork(after_in_child=_leave_to_parent)
