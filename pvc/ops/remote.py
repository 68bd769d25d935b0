# SPDX-License-Identifier: Apache-2.0
"""Commands in guests for programs: their output as bytes, from any thread, also beside an event loop."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from pvc.errors import GuestError, GuestTimeoutError, HostError
from pvc.ops.agents import Agents, Stream, ask, raise_closed
from pvc.ops.control import Control, close_quietly, send_request
from pvc.ops.execute import Command, Outcome, Runner
from pvc.ops.loop import Loop
from pvc.ops.status import find_endpoint

_PORT_S = 20.0
_METRICS = (("op", "metrics"),)
# RFC 4253, 4.2: the version, with which a server begins, may come after other lines.
_BANNER = b"SSH-"
_MAX_GREETING = 1 << 14


@dataclass(frozen=True)
class ExecResult:
    """How a command ended in one VM. ``code`` is minus the signal where one ended it.

    ``late``: it did not end in time, and this is what it had said by then; its code is 124.
    """

    vm: str
    code: int
    stdout: bytes
    stderr: bytes
    late: bool = False

    @property
    def text(self) -> str:
        """Standard output as text, without the last line's end."""
        return self.stdout.decode(errors="replace").removesuffix("\n")


def run_command(
    control: Control,
    ranks: Sequence[int],
    command: Command,
    timeout_s: float | None,
    stdin: bytes | None = None,
) -> list[ExecResult]:
    """Run a command in VMs, in all at the same time; results in the order of ``ranks``. ``stdin`` goes to each.

    :raise GuestTimeoutError: the time ran out: the commands that ran were ended. ``gathered`` are the results of all,
        those of the late ones, too.
    :raise GuestError: an agent does not answer or refuses.
    :raise EndedError: the cluster has ended.
    :raise HostError: a supervisor does not answer.
    """
    parts: dict[tuple[int, bool], list[bytes]] = {}

    def take(rank: int, data: bytes, second: bool) -> None:
        parts.setdefault((rank, second), []).append(data)

    runner = Runner(control, command, take, None, stdin)
    outcomes: list[Outcome] = runner.run(ranks, timeout_s, ())
    for outcome in outcomes:
        if outcome.failure is not None and not outcome.late:
            named = outcome.name in outcome.failure.error
            raise (outcome.failure if named else outcome.failure.about(outcome.name)).rebuild()
    results = [
        ExecResult(
            outcome.name,
            -outcome.signal if outcome.signal is not None else outcome.code,
            b"".join(parts.get((outcome.rank, False), ())),
            b"".join(parts.get((outcome.rank, True), ())),
            outcome.late,
        )
        for outcome in outcomes
    ]
    late = [result.vm for result in results if result.late]
    if late and timeout_s is not None:
        names = "" if len(late) == len(results) else f" in {', '.join(late[:5])}"
        raise GuestTimeoutError(f"{command.argv[0]} did not end within {timeout_s:g} s{names}", gathered=results)
    return results


class _Try(Stream):
    """A connection that is made to see whether it can be."""

    connected = False

    def on_note(self, words: dict[str, str]) -> None:
        self.connected = "connected" in words


def check_port(control: Control, rank: int, port: int) -> None:
    """:raise PvcError: nothing in the VM takes connections at its port."""
    words = [("op", "connect"), ("net", "tcp"), ("host", "127.0.0.1"), ("port", str(port))]
    stream = _Try()
    with Loop((), lambda _: None) as loop, Agents(control, loop) as agents:
        agents.open(rank, words, stream)
        if not loop.run_until(lambda: stream.connected or stream.closed, timeout_s=_PORT_S):
            raise GuestError(f"the agent of vm{rank} has not answered within {_PORT_S:g} s")
        raise_closed(stream.result or {})


def check_agent(control: Control, rank: int, timeout_s: float) -> None:
    """:raise PvcError: a VM's agent does not answer now."""
    with Loop((), lambda _: None) as loop, Agents(control, loop, connect_s=timeout_s) as agents:
        ask(agents, loop, rank, _METRICS, timeout_s)


def check_ssh(control: Control, rank: int, timeout_s: float) -> None:
    """:raise PvcError: a VM's ssh server says nothing now, whatever it has said before."""
    endpoint = find_endpoint(control.record, rank)
    deadline = time.monotonic() + timeout_s
    connection = control.connect(endpoint, timeout_s)
    try:
        _, said = send_request(connection, {"op": "ssh", "vm": rank}, endpoint.node)
        while not any(line.startswith(_BANNER) for line in said.splitlines()):
            left = deadline - time.monotonic()
            if left <= 0 or len(said) > _MAX_GREETING:
                raise TimeoutError
            connection.settimeout(left)
            data = connection.recv(4096)
            if not data:
                raise GuestError(f"the ssh server of vm{rank} closes connections at once")
            said += data
    except TimeoutError:
        raise GuestError(f"the ssh server of vm{rank} has not answered within {timeout_s:g} s") from None
    except OSError as err:
        raise HostError(f"the supervisor on {endpoint.node} stopped answering") from err
    finally:
        close_quietly(connection)
