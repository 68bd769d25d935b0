# SPDX-License-Identifier: Apache-2.0
"""What others change on this node is noticed, said and put back: at the kernel's word, and now and then unasked.

A firewall that starts anew flushes all rules, an administrator writes net.ipv4.ip_forward, a device is deleted. The
kernel tells of these; of flows in Open vSwitch and of what is inside clusters' namespaces it does not tell, so all of
it is compared with its plan every few minutes, and at once when pvc-node begins to serve.
"""

from __future__ import annotations

import logging
import os
import selectors
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from pvc.errors import HostError, PvcError
from pvc.host.kernelwatch import Changes, KernelWatch
from pvc.node.context import Context
from pvc.node.memberships import register_again
from pvc.node.mend import look_after
from pvc.plan import actions
from pvc.plan.diagnosis import settings_of
from pvc.state.ledger import Ledger, read_jobs

LOG = logging.getLogger(__name__)
_NICE = 10
# Whoever flushes rules loads others next.
_SETTLE_S = 0.3
_ROUND_S = 300.0
# The state store may have been emptied: what runs here must be known before another node takes its numbers.
_STORE_S = 60.0
# Who asked for what is broken is shown it, and what follows from it, before it is put back.
_AFTER_DOCTOR_S = 15.0
# What somebody undoes again and again is left alone for a while.
_TRIES, _WITHIN_S = 20, 60.0


@dataclass
class _Marks:
    """The names by which the kernel's word is known to be about a job."""

    tables: set[str] = field(default_factory=set)
    devices: set[str] = field(default_factory=set)
    forwarding: set[str] = field(default_factory=set)

    def concerns(self, changes: Changes) -> bool:
        """Whether what has changed may be the job's."""
        closed = changes.closed & self.forwarding or ("all" in changes.closed and self.forwarding)
        return bool(changes.lost or changes.tables & self.tables or changes.devices & self.devices or closed)


class Upkeep:
    """A thread that looks after the clusters that are set up here."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._asked: deque[tuple[int, float]] = deque()
        self._due: dict[int, float] = {}
        self._mended: dict[int, deque[float]] = defaultdict(lambda: deque(maxlen=_TRIES))

    def start(self) -> None:
        """Look after them until the process ends."""
        threading.Thread(target=self._run, name="upkeep", daemon=True).start()

    def refresh(self) -> None:
        """A job may have come or gone."""
        os.eventfd_write(self._wake, 1)

    def suspect(self, job_id: int) -> None:
        """Something of the job was seen to be not as planned."""
        self._asked.append((job_id, time.monotonic() + _AFTER_DOCTOR_S))
        self.refresh()

    def _run(self) -> None:
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        while True:
            try:
                self._watch()
            except Exception:  # the clusters run without, too
                LOG.exception("looking after networks failed")
                time.sleep(_WITHIN_S)

    def _watch(self) -> None:
        watch = KernelWatch()
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake, selectors.EVENT_READ)
            for link in watch.sockets:
                selector.register(link, selectors.EVENT_READ)
            try:
                marks = self._read_marks()
                next_round = next_word = 0.0
                while True:
                    now = time.monotonic()
                    if now >= next_round:
                        self._due |= dict.fromkeys(marks, now)
                        next_round = now + _ROUND_S
                    self._look_at_due(now)
                    if marks and now >= next_word:
                        self._tell_store()
                        next_word = now + _STORE_S
                    until = min([next_round, *([next_word] if marks else []), *self._due.values()])
                    ready = {key.fd for key, _ in selector.select(max(0.0, until - time.monotonic()))}
                    if self._wake in ready:
                        with suppress(BlockingIOError):
                            os.eventfd_read(self._wake)
                        marks = self._read_marks()
                        self._take_asked()
                    self._heed(watch.read(), marks)
            finally:
                watch.close()

    def _heed(self, changes: Changes, marks: dict[int, _Marks]) -> None:
        when = time.monotonic() + _SETTLE_S
        for job_id, each in marks.items():
            if each.concerns(changes):
                self._due[job_id] = min(when, self._due.get(job_id, when))

    def _take_asked(self) -> None:
        while self._asked:
            job_id, when = self._asked.popleft()
            self._due[job_id] = min(when, self._due.get(job_id, when))

    def _look_at_due(self, now: float) -> None:
        for job_id in [job_id for job_id, when in self._due.items() if when <= now]:
            del self._due[job_id]
            lately = self._mended[job_id]
            if len(lately) == _TRIES and now - lately[0] < _WITHIN_S:
                self._context.tell(job_id, "something on this node undoes its networks again and again")
                self._due[job_id] = lately[0] + _WITHIN_S
                continue
            try:
                if look_after(self._context, job_id):
                    lately.append(now)
            except (PvcError, OSError) as err:
                self._context.tell(job_id, f"its networks cannot be looked at: {err}")

    def _tell_store(self) -> None:
        with suppress(PvcError):  # a store that does not answer has forgotten nothing
            register_again(self._context)

    def _read_marks(self) -> dict[int, _Marks]:
        """Of the jobs that are set up; what is being set up or torn down is changed by pvc-node itself."""
        found = dict(self._marks_of_jobs())
        for job_id in self._mended.keys() - found.keys():
            del self._mended[job_id]
        return found

    def _marks_of_jobs(self) -> Iterator[tuple[int, _Marks]]:
        for job_id in read_jobs(self._context.state_dir):
            ledger = Ledger(self._context.state_dir, job_id)
            try:
                steps = ledger.read_actions() if ledger.read_ready() is not None else []
            except HostError as err:
                self._context.tell(job_id, str(err))
                continue
            if steps:
                yield job_id, _marks(steps)


def _marks(steps: list[actions.Action]) -> _Marks:
    marks = _Marks()
    for step in steps:
        match step:
            case actions.LoadRules(netns=None):
                marks.tables |= {table for _, table in step.tables}
            case actions.AddUplink():
                marks.devices.add(step.host_device)
            case actions.AddGateway():
                marks.devices.add(step.port)
            case actions.AddSwitchPorts():
                marks.devices |= {step.bridge, *step.ports}
            case actions.JoinBridge():
                marks.devices |= set(step.names)
        # net/ipv4/conf/DEVICE/forwarding
        marks.forwarding |= {key.split("/")[3] for key in settings_of(step) if key.endswith("/forwarding")}
    return marks
