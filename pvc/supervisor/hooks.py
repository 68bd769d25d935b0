# SPDX-License-Identifier: Apache-2.0
"""A template's hooks: programs of the job's owner, run around one VM's life, with a log of their own."""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import signal
import time
from contextlib import suppress
from pathlib import Path

from pvc import run
from pvc.errors import GuestError, HostError
from pvc.model.cluster import ClusterSpec
from pvc.plan.hooks import plan_environment
from pvc.supervisor.ending import describe_exit
from pvc.supervisor.helper import GUARD
from pvc.supervisor.share import VmShare

LOG = logging.getLogger(__name__)
LOG_NAME = "hooks.log"


class HookRunner:
    """Runs the hooks of one VM."""

    def __init__(self, share: VmShare, spec: ClusterSpec) -> None:
        self._share = share
        self._spec = spec

    async def run(self, name: str, detail: str | None = None) -> str | None:
        """Run a hook, if the template has it, to its end; returns what went wrong. ``detail``: how the VM ended.

        Cancelled, it is killed.
        """
        hooks = self._share.template.hooks
        words = hooks.commands[name]
        if not words:
            return None
        try:
            wrong = await self._run(name, words, hooks.timeout_s, detail)
        except (HostError, OSError) as err:
            wrong = f"cannot be started: {err}"
        if wrong is not None:
            LOG.warning("%s: hook %s %s", self._share.name, name, wrong)
        return None if wrong is None else f"hook {name} {wrong}"

    async def require(self, name: str) -> bool:
        """The same, where nothing goes on without it: true, when it was done.

        :raise GuestError: it failed.
        """
        wrong = await self.run(name)
        if wrong is not None:
            raise GuestError(wrong, hint=self.hint)
        return True

    @property
    def hint(self) -> str:
        """Where its words are."""
        return f"what it said: pvc logs --source hooks {self._share.name}"

    async def _run(self, name: str, words: tuple[str, ...], timeout_s: int, detail: str | None) -> str | None:
        log = self._share.directory / LOG_NAME
        fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            moment = time.strftime("%Y-%m-%dT%H:%M:%S%z")
            os.write(fd, f"{moment} {name}: {shlex.join(words)}\n".encode(errors="replace"))
            env = plan_environment(os.environ, run.PATH, self._facts(name, detail))
            # A session of its own: with it, what it has started is found.
            process = run.spawn([*GUARD, *words], env=env, cwd=Path("/"), stdout=fd, stderr=fd, new_session=True)
            wrong = await _wait(process, timeout_s)
            os.write(fd, f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {name}: {wrong or 'done'}\n".encode())
            return wrong
        finally:
            os.close(fd)

    def _facts(self, name: str, detail: str | None) -> dict[str, object]:
        share = self._share
        return {
            "hook": name,
            "job_id": self._spec.job_id,
            "cluster": self._spec.name,
            "vm": share.name,
            "rank": share.rank,
            "template": share.template.name,
            "node": share.node,
            "cpus": share.cpus,
            "memory_mib": share.memory_mib,
            "addresses": " ".join(share.addresses),
            "ssh_host": share.ssh_host,
            "ssh_port": share.ssh_port,
            "detail": detail,
        }


async def _wait(process: run.Process[bytes], timeout_s: int) -> str | None:
    loop = asyncio.get_running_loop()
    pidfd = os.pidfd_open(process.pid)
    ended: asyncio.Future[None] = loop.create_future()
    loop.add_reader(pidfd, _note, ended)
    try:
        async with asyncio.timeout(timeout_s):
            await ended
        status = process.wait()
        return None if status == 0 else describe_exit(status)
    except TimeoutError:
        return f"did not end within {timeout_s} s, and was killed"
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _note(ended: asyncio.Future[None]) -> None:
    if not ended.done():
        ended.set_result(None)
