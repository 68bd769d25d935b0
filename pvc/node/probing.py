# SPDX-License-Identifier: Apache-2.0
"""Probe frames between the nodes of a job: each node sends and listens for some seconds, at the same time.

What arrives where shows each direction by itself. Time, frames a second and what is kept are bounded, whoever asks.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any

from pvc.errors import HostError, UsageError
from pvc.host import frames, netlink, netns, ovsview, walls
from pvc.model.netview import ProbeReport, ProbeShare
from pvc.node.netview import read_inputs
from pvc.plan import names, probes
from pvc.plan.probes import Probe
from pvc.plan.walls import open_port
from pvc.state.ledger import Ledger

MIN_WINDOW_S, MAX_WINDOW_S = 0.5, 10.0
_LISTEN_AFTER_S = 0.3
_ROUND_S = 0.25
_FRAMES_PER_S = 2000
_BURST = 20
_HEARD_AT_ONCE = 2000


def parse_request(message: dict[str, Any]) -> tuple[bytes, float]:
    """(nonce, seconds) of a request.

    :raise UsageError: they are not.
    """
    nonce, window_s = message.get("nonce"), message.get("window_s")
    try:
        name = bytes.fromhex(nonce) if isinstance(nonce, str) and len(nonce) == 2 * probes.NONCE_BYTES else b""
    except ValueError:
        name = b""
    if len(name) != probes.NONCE_BYTES:
        raise UsageError(f"nonce must be {probes.NONCE_BYTES} bytes in hexadecimal digits")
    if (
        isinstance(window_s, bool)
        or not isinstance(window_s, int | float)
        or not MIN_WINDOW_S <= window_s <= MAX_WINDOW_S
    ):
        raise UsageError(f"window_s must be a number of seconds from {MIN_WINDOW_S:g} to {MAX_WINDOW_S:g}")
    return name, float(window_s)


def probe(ledger: Ledger, nonce: bytes, window_s: float) -> ProbeReport:
    """Send to the job's other nodes and listen to them for ``window_s`` seconds.

    :raise HostError: the plan is not known.
    """
    inputs = read_inputs(ledger)
    planned = probes.plan_probes(inputs)
    end = time.monotonic() + window_s
    with ExitStack() as stack:
        runs = [_Run(each, inputs.job.nodes, inputs.job.node, nonce, stack) for each in planned]
        _exchange(runs, end)
        return ProbeReport(inputs.job.node, tuple(run.result() for run in runs))


class _Run:
    """One network's probes."""

    def __init__(self, planned: Probe, nodes: tuple[str, ...], node: str, nonce: bytes, stack: ExitStack) -> None:
        self._planned = planned
        self._nodes = nodes
        self._nonce = nonce
        self._heard: dict[str, set[int]] = {}
        self._error: str | None = None
        self.sender: socket.socket | None = None
        self.listener: socket.socket | None = None
        try:
            start = probes.MAGIC + nonce
            self.listener = stack.enter_context(
                frames.open_listener(planned.listener, probes.ETHERTYPE, start, outgoing=bool(planned.to_vm))
            )
            if planned.to_vm and not _has_carrier(planned.listener):
                self._error = f"{planned.to_vm}, on whose way frames would be heard, does not run"
            elif planned.switch_port is None:
                self.sender = stack.enter_context(frames.open_sender(planned.sender))
        except HostError as err:
            self._error = str(err)
        number = nodes.index(node)
        self._frames = [
            probes.render_frame(planned, target, nonce, number, size)
            for target in planned.targets
            for size in planned.sizes
        ]

    def frames(self) -> Iterator[tuple[_Run, bytes]]:
        """All frames of one round."""
        if self.sender is not None:
            yield from ((self, frame) for frame in self._frames)

    def send_by_switch(self) -> None:
        """Send a whole round through the switch, where there is no device to send by."""
        port = self._planned.switch_port
        if port is not None and self._error is None:
            try:
                ovsview.send_frames(names.SWITCH, port, self._frames)
            except HostError as err:
                self._error = str(err)

    def send(self, frame: bytes) -> None:
        """Send one; a full queue is met again in the next round."""
        assert self.sender is not None
        try:
            self.sender.send(frame)
        except BlockingIOError:
            return
        except OSError as err:
            self._error = f"cannot send by {self._planned.sender[1]}: {err.strerror}"

    def hear(self) -> None:
        """Take what came, but not for ever."""
        assert self.listener is not None
        with suppress(OSError):
            for _ in range(_HEARD_AT_ONCE):
                found = probes.parse_frame(self.listener.recv(65536), self._nonce)
                if found is not None and found[0] < len(self._nodes) and found[1] in self._planned.sizes:
                    self._heard.setdefault(self._nodes[found[0]], set()).add(found[1])

    def result(self) -> ProbeShare:
        """What was heard, of the nodes that were to be heard."""
        planned = self._planned
        heard = {node: tuple(sorted(self._heard[node])) for node in planned.targets if node in self._heard}
        return ProbeShare(
            planned.network,
            planned.sizes,
            tuple(planned.targets),
            heard,
            planned.carrier,
            planned.underlay_mtu,
            self._error,
            None if heard or self._error else self._find_remedy(),
        )

    def _find_remedy(self) -> str | None:
        """Of a node where nothing came in: what lets it past a firewall of the node's own, where one is known."""
        planned = self._planned
        if not planned.by_kernel:
            return None
        found = walls.read_walls("input", planned.underlay).of(["ip"])
        return open_port(found, planned.udp_port)


def _has_carrier(place: tuple[str | None, str]) -> bool:
    def read() -> bool:
        with netlink.opened(f"look at {place[1]}") as links:
            return links.get(place[1]).carrier

    return netns.run_inside(place[0], read)


def _exchange(runs: list[_Run], end: float) -> None:
    """Rounds of sending until a little before ``end``, and listening all the time."""
    listeners = {run.listener.fileno(): run for run in runs if run.listener is not None}
    poll = select.poll()
    for fd in listeners:
        poll.register(fd, select.POLLIN)

    def listen_until(moment: float) -> None:
        while (left := moment - time.monotonic()) > 0:
            for fd, _ in poll.poll(left * 1000):
                listeners[fd].hear()

    while time.monotonic() < end - _LISTEN_AFTER_S:
        next_round = time.monotonic() + _ROUND_S
        for each in runs:
            each.send_by_switch()
        for number, (run, frame) in enumerate(pair for each in runs for pair in each.frames()):
            run.send(frame)
            if number % _BURST == _BURST - 1:
                listen_until(time.monotonic() + _BURST / _FRAMES_PER_S)
                if time.monotonic() >= end:
                    return
        listen_until(min(next_round, end))
    listen_until(end)
