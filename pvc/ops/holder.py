"""The job of a cluster that a program has allocated: it ends with the program."""

from __future__ import annotations

import os
import select
import signal
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO

from pvc import run
from pvc.errors import GuestError, HostError, JobError, PvcError, StateError, UsageError
from pvc.slurm.job import cancel_job

_END_S = 60.0
_ERRORS: dict[int, type[PvcError]] = {
    error.exit_code: error for error in (UsageError, JobError, StateError, HostError, GuestError)
}


class Holder:
    """An alloc whose script waits for the end of its standard input, and so for the end of this process."""

    def __init__(self, argv: Sequence[str], variables: Mapping[str, str]) -> None:
        """:raise JobError: there is no salloc."""
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  open as long as the alloc
        self._job_id: int | None = None
        try:
            self._process = run.spawn(
                argv,
                env={**os.environ, **variables},
                stdin=run.PIPE,
                stdout=run.PIPE,
                stderr=self._stderr,
                new_session=True,
            )
        except HostError as err:
            self._stderr.close()
            raise JobError("cannot ask Slurm", hint="install Slurm's client commands on this machine") from err

    def wait_ready(self, timeout_s: float | None) -> int:
        """The job's number, once its VMs run.

        :raise PvcError: they never will; what the launcher said.
        """
        assert self._process.stdout is not None
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        line = b""
        while not line.endswith(b"\n"):
            left_s = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not select.select([self._process.stdout], [], [], left_s)[0]:
                raise JobError(f"the VMs do not run after {timeout_s:g} s", hint="pvc ps shows what Slurm says")
            data = os.read(self._process.stdout.fileno(), 4096)
            if not data:
                self._process.wait()
                raise self._explain()
            line += data
        self._job_id = int(line)
        return self._job_id

    def end(self) -> None:
        """Let the job end, and see to it."""
        if self._stderr.closed:
            return
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(OSError):
                    stream.close()
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

    def _explain(self) -> PvcError:
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").splitlines()
        said = [line.removeprefix("pvc: ") for line in lines if line.startswith("pvc: ")]
        hint = next((line.removeprefix("hint: ") for line in lines if line.startswith("hint: ")), None)
        code = self._process.returncode
        text = said[-1] if said else lines[-1] if lines else f"salloc ended with {code}"
        return _ERRORS.get(code, JobError)(text, hint=hint)
