# SPDX-License-Identifier: Apache-2.0
"""The programs of one run of a VM that serve QEMU over sockets: swtpm, virtiofsd for directories over virtio-fs."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Sequence
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

from pvc.errors import GuestError
from pvc.plan.helpers import Helper as Plan
from pvc.supervisor.driver import Machine
from pvc.supervisor.ending import describe_exit
from pvc.supervisor.helper import Helper, running
from pvc.supervisor.state import State

# QEMU's end is theirs: whoever of them ends first, for the other this is long.
_TOGETHER_S = 1.0
_AGAIN = "it has it again when it starts again: pvc stop VM, pvc start VM"
_NO_NAMESPACE = "the nodes must let users make user namespaces (sysctl user.max_user_namespaces); or use type 9p"


class Companions:
    """``tpm`` and ``shares`` are for QEMU to inherit, until ``let_go``."""

    def __init__(self) -> None:
        self.tpm: int | None = None
        self.shares: tuple[int, ...] = ()
        self._running: list[tuple[Plan, Helper]] = []
        self._sockets = ExitStack()

    async def start(self, plans: Sequence[Plan], directory: Path, exits: AsyncExitStack) -> None:
        """Start all, to be ended by ``exits``; in ``directory``, the VM's own, there are sockets for a moment.

        :raise HostError: one cannot be started.
        :raise OSError: no socket can be made.
        """
        exits.callback(self.let_go)
        for plan in plans:
            ours, theirs = _listen(directory, plan.name) if plan.listens else socket.socketpair()
            self._sockets.enter_context(ours)
            with theirs:
                fd = theirs.fileno()
                helper = running(plan.program, plan.command(fd), pass_fds=(fd,))
                self._running.append((plan, await exits.enter_async_context(helper)))
            if plan.name == "tpm":
                self.tpm = ours.fileno()
            else:
                self.shares += (ours.fileno(),)

    @property
    def fds(self) -> tuple[int, ...]:
        """All that QEMU inherits."""
        return self.shares if self.tpm is None else (self.tpm, *self.shares)

    def let_go(self) -> None:
        """QEMU has its own copies: the last ones go with it."""
        self._sockets.close()
        self.tpm, self.shares = None, ()

    def explain(self) -> GuestError | None:
        """Why QEMU did not start, where that is because one of them ended."""
        ended = [(plan, helper) for plan, helper in self._running if helper.ended.done()]
        if not ended:
            return None
        plan, helper = ended[0]
        said = helper.said()
        text = f"{plan.program} for the {plan.what} {describe_exit(helper.ended.result())}"
        hint = _NO_NAMESPACE if said.startswith("unshare:") else None
        return GuestError(f"{text}: {said}" if said else text, hint=hint)

    async def watch(self, machine: Machine, state: State) -> None:
        """Tell of each that ends before QEMU does."""
        await asyncio.gather(*(_watch(plan, helper, machine, state) for plan, helper in self._running))


async def _watch(plan: Plan, helper: Helper, machine: Machine, state: State) -> None:
    status = await asyncio.shield(helper.ended)
    if status == 0:
        # As it does when QEMU has ended, of which nobody may have heard yet.
        qemu = asyncio.ensure_future(machine.wait())
        await asyncio.wait({qemu}, timeout=_TOGETHER_S)
        qemu.cancel()
    if not machine.ended:
        state.lack(f"without its {plan.what}: {plan.program} {describe_exit(status)}", _AGAIN)


def _listen(directory: Path, name: str) -> tuple[socket.socket, socket.socket]:
    """A connection, and the listener where it waits; the name between them is gone again."""
    # A socket's name has at most 107 bytes, a directory of the site may have more.
    place = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    path = f"/proc/self/fd/{place}/{name}.sock"
    ours, listener = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    try:
        listener.bind(path)
        try:
            listener.listen(1)
            ours.connect(path)
        finally:
            os.unlink(path)
    except OSError:
        ours.close()
        listener.close()
        raise
    finally:
        os.close(place)
    return ours, listener
