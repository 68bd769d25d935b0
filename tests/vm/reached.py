# SPDX-License-Identifier: Apache-2.0
"""A cluster of small guests with the agent in them, as its owner's commands reach it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from guests import Guest, agent_guest
from harness import NODE, guest_template, supervised

from pvc.model.cluster import ClusterRecord, NodeEndpoint
from pvc.model.event import EventKind
from pvc.model.vm import Phase, VmStatus
from pvc.ops.control import Control
from pvc.ops.execute import Command, Outcome, Runner
from pvc.ops.jobdir import JobDir
from pvc.ops.status import read_status
from tests.waits import wait_until


class Reached:
    """The cluster; ``run`` is ``pvc exec``."""

    def __init__(
        self, base: Path, count: int, guest: Guest | None = None, memory_mib: int = 416, **changes: object
    ) -> None:
        base.mkdir(parents=True, exist_ok=True)
        guest = guest or agent_guest()
        self._stack = ExitStack()
        templates = [guest_template(guest, **{"name": f"tiny{i}"} | changes) for i in range(count)]
        self.cluster = self._stack.enter_context(supervised(base, *templates, memory_mib=memory_mib))
        spec = self.cluster.spec
        jobdir = JobDir(base / "job")
        jobdir.path.mkdir()
        jobdir.tls_cert.write_text(spec.keys.tls_cert)
        jobdir.tls_key.write_text(spec.keys.tls_key)
        event = self.cluster.wait_event(EventKind.LISTENING)
        assert event.host is not None
        assert event.port is not None
        endpoint = NodeEndpoint(NODE, event.host, event.port)
        record = ClusterRecord(
            12, "test", "tiny", time.time(), "here", os.getpid(), spec.placement, spec.groups, (endpoint,)
        )
        self.control = Control(record, jobdir)
        self.ranks = tuple(range(count))

    def wait_agents(self, timeout_s: float = 240) -> Sequence[VmStatus]:
        """Until all agents answer."""
        found: Sequence[VmStatus] = ()

        def are_there() -> bool:
            nonlocal found
            found = read_status(self.control, self.ranks, timeout_s=60)
            if found and all(vm.agent.connected for vm in found):
                return True
            assert all(vm.phase not in (Phase.FAILED, Phase.STOPPED) for vm in found), found
            return False

        wait_until(are_there, timeout_s, lambda: found)
        return found

    def run(self, *argv: str, ranks: Sequence[int] | None = None, timeout_s: float | None = 120, **more: object) -> Ran:
        """Run a command in these VMs, all without ``ranks``."""
        out: dict[tuple[int, bool], bytearray] = {}

        def take(rank: int, data: bytes, second: bool) -> None:
            out.setdefault((rank, second), bytearray()).extend(data)

        stdin = more.pop("stdin_fd", None)
        assert stdin is None or isinstance(stdin, int)
        command = Command(argv, stdin=stdin is not None, **more)  # type: ignore[arg-type]
        outcomes = Runner(self.control, command, take, stdin).run(ranks or self.ranks, timeout_s, ())
        return Ran(outcomes, out)

    def close(self) -> None:
        """End it."""
        self._stack.close()


class Ran:
    """What became of a command."""

    def __init__(self, outcomes: Sequence[Outcome], out: dict[tuple[int, bool], bytearray]) -> None:
        self.outcomes = outcomes
        self._out = out

    @property
    def codes(self) -> list[int]:
        """Exit codes."""
        return [outcome.code for outcome in self.outcomes]

    def out(self, rank: int = 0) -> str:
        """Standard output."""
        return self._out.get((rank, False), bytearray()).decode()

    def err(self, rank: int = 0) -> str:
        """Standard error."""
        return self._out.get((rank, True), bytearray()).decode()


@contextmanager
def reached(
    base: Path, count: int, guest: Guest | None = None, memory_mib: int = 416, **changes: object
) -> Iterator[Reached]:
    """A cluster whose agents answer; ``changes`` to their templates."""
    found = Reached(base, count, guest, memory_mib, **changes)
    try:
        found.wait_agents()
        yield found
    finally:
        found.close()
