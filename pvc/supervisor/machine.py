# SPDX-License-Identifier: Apache-2.0
"""One QEMU process: started as a child that cannot outlive the supervisor, driven over QMP."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any

from qemu.qmp import ConnectError, EventListener, ExecInterruptedError, QMPClient, QMPError, Runstate

from pvc import run
from pvc.errors import GuestError
from pvc.plan.qemumemory import ENVIRONMENT
from pvc.supervisor.driver import COMMAND_S, Tell, event_data
from pvc.supervisor.stopping import end_machine

LOG = logging.getLogger(__name__)

# The kernel kills QEMU when the supervisor dies in whatever way: prctl(2), PR_SET_PDEATHSIG; it survives the
# execve() of a program without file capabilities. A supervisor that dies within the millisecond between fork and
# prctl leaves a QEMU that Slurm ends with the step.
_GUARD = ("setpriv", "--pdeathsig", "KILL", "--")
_STDERR_BYTES = 8192
_SHOWN = 800
_CONNECT_S = 60.0
_POLL_S = 0.2
_TOLD_S = 1.0


class QemuMachine:
    """A running QEMU (``pvc.supervisor.driver.Machine``); ``start`` makes one."""

    def __init__(
        self,
        process: run.Process[bytes],
        qmp: socket.socket,
        console: socket.socket,
        channels: Mapping[str, socket.socket],
        stderr_fd: int,
    ) -> None:
        self.console = console
        self.channels = channels
        self._process = process
        self._qmp_socket = qmp
        self._stderr_fd = stderr_fd
        self._stderr: deque[bytes] = deque()
        self._stderr_size = 0
        self._qmp = QMPClient(f"qemu-{process.pid}")
        self._giving = asyncio.Lock()
        self.events = EventListener()
        self._qmp.register_listener(self.events)
        loop = asyncio.get_running_loop()
        self._exited: asyncio.Future[int] = loop.create_future()
        self._pidfd = os.pidfd_open(process.pid)
        loop.add_reader(self._pidfd, self._on_exit)
        os.set_blocking(stderr_fd, False)
        loop.add_reader(stderr_fd, self._on_stderr)

    @classmethod
    def start(
        cls,
        argv: Sequence[str],
        qmp: socket.socket,
        console: socket.socket,
        channels: Mapping[str, socket.socket],
        pass_fds: Sequence[int],
    ) -> QemuMachine:
        """Start QEMU; the sockets are near ends of pairs whose far ends are among ``pass_fds``.

        :raise HostError: it cannot be started.
        :raise OSError: it cannot be watched, and was ended.
        """
        read_end, write_end = os.pipe()
        try:
            env = {**run.BASE_ENV, **ENVIRONMENT}
            process = run.spawn([*_GUARD, *argv], env=env, stdout=write_end, stderr=write_end, pass_fds=pass_fds)
        except BaseException:
            os.close(read_end)
            raise
        finally:
            os.close(write_end)
        try:
            return cls(process, qmp, console, channels, read_end)
        except BaseException:  # no descriptor is left, for one: nobody would watch it
            os.close(read_end)
            process.kill()
            process.wait()
            raise

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Whether QEMU is gone."""
        return self._exited.done()

    def stderr(self) -> str:
        """The last that QEMU wrote, in one line."""
        text = b"".join(self._stderr)[-_STDERR_BYTES:].decode(errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return "; ".join(lines[-4:])[-_SHOWN:]

    def listener(self, *names: str) -> AbstractContextManager[EventListener]:
        """Events of these names, from now on."""
        return self._qmp.listener(names)

    async def wait(self) -> int:
        """QEMU's exit code, or minus the number of the signal that killed it."""
        return await asyncio.shield(self._exited)

    async def connect(self) -> None:
        """Greet QEMU's monitor.

        :raise GuestError: QEMU ended or did not answer; says with which words.
        """
        try:
            async with asyncio.timeout(_CONNECT_S):
                await self._qmp.connect(self._qmp_socket)
        except (ConnectError, QMPError, OSError, EOFError) as err:
            raise GuestError("QEMU did not start") from err
        except TimeoutError:
            raise GuestError(f"QEMU's monitor did not answer within {_CONNECT_S:g} s") from None

    async def execute(
        self, command: str, arguments: Mapping[str, object] | None = None, *, timeout_s: float = COMMAND_S
    ) -> Any:
        """Run a QMP command.

        :raise GuestError: QEMU refused, ended, or did not answer.
        """
        try:
            async with asyncio.timeout(timeout_s):
                return await self._qmp.execute(command, arguments)
        except (QMPError, ExecInterruptedError, OSError, EOFError) as err:
            raise GuestError(f"QEMU refused {command!r}") from err
        except TimeoutError:
            raise GuestError(f"QEMU did not answer {command!r} within {timeout_s:g} s") from None

    async def dump(self, fd: int, form: str, tell: Tell) -> None:
        """Write the guest's memory to an open file, while it stands still; ``tell(done, total)`` hears of it, in bytes.

        :raise GuestError: QEMU refused, ended, or could not write.
        """
        name = f"dump-{os.urandom(4).hex()}"
        await self._give_file(name, fd)
        with self.listener("DUMP_COMPLETED") as told:
            try:
                arguments = {"paging": False, "protocol": f"fd:{name}", "detach": True, "format": form}
                await self.execute("dump-guest-memory", arguments)
            except GuestError:
                with suppress(GuestError):
                    await self.execute("closefd", {"fdname": name})
                raise
            while True:
                state = await self.execute("query-dump")
                await tell(int(state["completed"]), int(state["total"]))
                if state["status"] != "active":
                    break
                await asyncio.sleep(_POLL_S)
            if state["status"] != "completed":
                error = str(state["status"])
                with suppress(TimeoutError):
                    async with asyncio.timeout(_TOLD_S):
                        error = str(event_data(await told.get()).get("error", error))
                raise GuestError(f"the guest's memory was not written: {error}")

    async def _give_file(self, name: str, fd: int) -> None:
        """Give QEMU a copy of a descriptor, which its commands know as ``fd:NAME``.

        :raise GuestError: QEMU refused, ended, or did not answer.
        """
        await self._give(fd, "getfd", {"fdname": name})

    async def share_file(self, fd: int) -> int:
        """Give QEMU a copy of a descriptor that it may open as /dev/fdset/NUMBER; returns the number.

        :raise GuestError: QEMU refused, ended, or did not answer.
        """
        return int((await self._give(fd, "add-fd"))["fdset-id"])

    async def _give(self, fd: int, command: str, arguments: Mapping[str, object] | None = None) -> Any:
        """Send a descriptor with the command that takes it: of two that came before, QEMU has the last one only."""
        async with self._giving:
            try:
                self._qmp.send_fd_scm(fd)
            except (QMPError, OSError) as err:
                raise GuestError("QEMU took no descriptor") from err
            return await self.execute(command, arguments)

    async def find_disk(self, number: int) -> str:
        """The node of a disk in QEMU's block graph."""
        return f"extra{number}" if number else "disk"

    async def pin(self, cpus: Sequence[int]) -> None:
        """Pin vCPU i to cpus[i], and QEMU's other threads to all of them.

        :raise GuestError: QEMU does not answer.
        :raise OSError: the kernel refuses one of the CPUs.
        """
        for thread in os.listdir(f"/proc/{self.pid}/task"):
            with suppress(ProcessLookupError):
                os.sched_setaffinity(int(thread), cpus)
        for vcpu in await self.execute("query-cpus-fast"):
            os.sched_setaffinity(vcpu["thread-id"], [cpus[vcpu["cpu-index"]]])

    async def stop(self, grace_s: float) -> None:
        """End QEMU: ask the guest for ``grace_s`` seconds, then QEMU, then the kernel."""
        await end_machine(self, self._process.kill, grace_s)

    async def drain(self) -> None:
        """After QEMU's end: return once all that it said over QMP is in ``events``."""
        with suppress(TimeoutError):
            async with asyncio.timeout(1):
                while self._qmp.runstate is Runstate.RUNNING:
                    await self._qmp.runstate_changed()

    async def close(self) -> None:
        """Forget the monitor; QEMU has ended."""
        with suppress(QMPError, OSError, EOFError, asyncio.CancelledError):
            await self._qmp.disconnect()
        self._qmp_socket.close()

    def _on_exit(self) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._on_stderr()
        self._close_stderr()
        self._exited.set_result(self._process.wait())

    def _on_stderr(self) -> None:
        with suppress(BlockingIOError):
            while self._stderr_fd >= 0:
                data = os.read(self._stderr_fd, 4096)
                if not data:
                    self._close_stderr()
                    return
                self._stderr.append(data)
                self._stderr_size += len(data)
                while self._stderr_size - len(self._stderr[0]) > _STDERR_BYTES:
                    self._stderr_size -= len(self._stderr.popleft())

    def _close_stderr(self) -> None:
        if self._stderr_fd >= 0:
            asyncio.get_running_loop().remove_reader(self._stderr_fd)
            os.close(self._stderr_fd)
            self._stderr_fd = -1
