# SPDX-License-Identifier: Apache-2.0
"""A program that one run of a VM needs beside QEMU (a TPM, a file server): up before QEMU, gone after it."""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from pvc import run
from pvc.errors import GuestError

LOG = logging.getLogger(__name__)

# As for QEMU: the kernel ends it with the supervisor, however that ends (prctl(2), PR_SET_PDEATHSIG).
GUARD = ("setpriv", "--pdeathsig", "KILL", "--")
_END_S = 3.0
_SHOWN = 800


class Helper:
    """A running one."""

    def __init__(self, name: str, process: run.Process[bytes], output: int) -> None:
        self.name = name
        self._process = process
        self._output = output
        self._pidfd = os.pidfd_open(process.pid)
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().add_reader(self._pidfd, self._on_exit)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def said(self) -> str:
        """What it wrote last, in one line."""
        size = os.fstat(self._output).st_size
        text = os.pread(self._output, _SHOWN, max(0, size - _SHOWN)).decode(errors="replace")
        return "; ".join(line.strip() for line in text.splitlines() if line.strip())

    async def wait_ready(self, ready: Callable[[], Awaitable[None]], timeout_s: float) -> None:
        """Return when ``ready`` does, which waits for what the helper makes.

        :raise GuestError: it ended before, or took longer; says with which words.
        """
        waiting = asyncio.ensure_future(ready())
        try:
            both: set[asyncio.Future[Any]] = {waiting, self.ended}
            await asyncio.wait(both, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if waiting.done():
                return waiting.result()
            what = f"ended with {self.ended.result()}" if self.ended.done() else f"was not ready within {timeout_s:g} s"
            said = self.said()
            raise GuestError(f"{self.name} {what}{f': {said}' if said else ''}")
        finally:
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)

    async def stop(self) -> None:
        """End it: SIGTERM, then the kernel."""
        if not self.ended.done():
            self._process.terminate()
            await asyncio.wait({self.ended}, timeout=_END_S)
        if not self.ended.done():
            LOG.warning("%s did not end within %g s", self.name, _END_S)
            self._process.kill()
        await self.ended

    def _on_exit(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        self.ended.set_result(self._process.wait())


@asynccontextmanager
async def running(
    name: str,
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    pass_fds: Sequence[int] = (),
) -> AsyncIterator[Helper]:
    """Run a program while the block does; what it says goes to an unnamed file.

    :raise HostError: it cannot be started.
    :raise OSError: it cannot be watched, and was ended.
    """
    output = os.memfd_create(name, os.MFD_CLOEXEC)
    try:
        LOG.debug("%s: %s", name, shlex.join(argv))
        process = run.spawn([*GUARD, *argv], env=env, cwd=cwd, stdout=output, stderr=output, pass_fds=pass_fds)
        try:
            helper = Helper(name, process, output)
        except BaseException:  # no descriptor is left, for one: nobody would watch it
            process.kill()
            process.wait()
            raise
        try:
            yield helper
        finally:
            with suppress(ProcessLookupError):
                await helper.stop()
    finally:
        os.close(output)
