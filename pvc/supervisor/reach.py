# SPDX-License-Identifier: Apache-2.0
"""Whether a guest answers, told as its phase."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

from pvc.model.vm import Phase
from pvc.supervisor.pauses import Pauses
from pvc.supervisor.probe import Answer, wait_banner
from pvc.supervisor.share import VmShare
from pvc.supervisor.state import State

_NO_SSH_YET = ", no ssh answer yet"
_REFUSED = ", refuses ssh: no sshd listens, or not yet"
_NO_SSH_PORT = "; no port of the node leads to its ssh"


class Reach:
    """Of one run of QEMU; ``at``: when ssh first answered, seconds since the epoch."""

    def __init__(
        self,
        share: VmShare,
        state: State,
        pauses: Pauses,
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        self.at: float | None = None
        self.on_answer: Callable[[], object] = lambda: None  # what else is done then
        self._share = share
        self._state = state
        self._pauses = pauses
        self._spawn = spawn
        self._probe: asyncio.Task[None] | None = None

    def begin(self, happened: str) -> None:
        """From here on the guest runs; ssh tells when it is up. ``happened`` is why it is not yet."""
        if self._probe is not None:
            self._probe.cancel()
        share = self._share
        self.at = None
        if share.ssh_host is None or share.ssh_port is None:
            self._pauses.show(Phase.BOOTING, f"{happened}{_NO_SSH_PORT}")
            return
        self._pauses.show(Phase.BOOTING, f"{happened}{_NO_SSH_YET}")
        self._probe = self._spawn(self._watch(share.ssh_host, share.ssh_port, happened))

    async def _watch(self, host: str, port: int, happened: str) -> None:
        def on_silence(answer: Answer) -> None:
            # Most guests have their network a moment before their sshd.
            if self._pauses.why is None:
                self._state.add(f"{happened}{_REFUSED if answer is Answer.REFUSED else _NO_SSH_YET}")

        await wait_banner(host, port, on_silence)
        self.at = time.time()
        self._pauses.show(Phase.REACHABLE)
        self.on_answer()
