# SPDX-License-Identifier: Apache-2.0
"""Flows of clusters after Open vSwitch was started again: they are in its process alone, and go with it.

Its ports are in its database and come back by themselves. Whoever starts it again (systemd, an administrator) does not
know of flows, so this node's daemon watches the process, and when there is another one, gives it what the ledger says.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

from pvc.errors import PvcError
from pvc.files import read_text, write_atomic
from pvc.host import ovs
from pvc.host.processes import read_start_ticks
from pvc.node import apply
from pvc.node.context import Context
from pvc.node.watch import Watched
from pvc.plan import actions
from pvc.state.ledger import Ledger, read_jobs

LOG = logging.getLogger(__name__)
_RETURN_TIMEOUT_S = 30.0


class SwitchWatch:
    """``find`` is for a ``Watch`` of its own: repairing waits for Open vSwitch."""

    def __init__(self, context: Context) -> None:
        self._context = context
        # Kept for the next daemon: of the same process it need not say that it is another.
        self._record = context.runtime_dir / "vswitchd"

    def find(self) -> list[Watched]:
        """Open vSwitch's process while there are clusters on it; none when it is not the one that has their flows."""
        process = ovs.find_process()
        if not any(self._switched_jobs()):
            self._note(process)  # set-ups load into it
            return []
        known = process is not None and _name(process) == read_text(self._record, default="")
        return [Watched("Open vSwitch", process if known else None, self._repair)]

    def _switched_jobs(self) -> Iterator[int]:
        for job_id in read_jobs(self._context.state_dir):
            ledger = Ledger(self._context.state_dir, job_id)
            try:
                steps = ledger.read_actions() if ledger.read_ready() is not None else []
            except PvcError as err:
                self._context.tell(job_id, str(err))
                continue
            if any(isinstance(step, actions.LoadFlows) for step in steps):
                yield job_id

    def _repair(self) -> None:
        process = ovs.wait_serving(timeout_s=_RETURN_TIMEOUT_S)
        for job_id in self._switched_jobs():
            self._load(job_id)
        self._note(process)

    def _note(self, process: int | None) -> None:
        name = _name(process) if process is not None else ""
        if name != read_text(self._record, default=""):
            write_atomic(self._record, name, mode=0o600)

    def _load(self, job_id: int) -> None:
        ledger = Ledger(self._context.state_dir, job_id)
        with self._context.job_lock(job_id):
            inputs = ledger.read_inputs() if ledger.read_ready() is not None else None
            if inputs is None:
                if not ledger.exists():
                    self._context.forget_lock(job_id)
                return
            LOG.warning("job %d: Open vSwitch is another process than before, loading flows", job_id)
            for step in inputs.plan().actions:
                if isinstance(step, actions.AddSwitchPorts | actions.LoadFlows):
                    apply.create(step, self._context.hands())


def _name(process: int) -> str:
    """What no other process will be called."""
    started = read_start_ticks(process)
    return "" if started is None else f"{process} {started}"
