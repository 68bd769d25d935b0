"""Commands in guests for programs: their output as bytes, from any thread, also beside an event loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pvc.errors import GuestError, HostError
from pvc.ops.agents import Agents, Stream, raise_closed
from pvc.ops.control import Control
from pvc.ops.execute import Command, Outcome, Runner
from pvc.ops.loop import Loop

_PORT_S = 20.0


@dataclass(frozen=True)
class ExecResult:
    """How a command ended in one VM. ``code`` is minus the signal where one ended it."""

    vm: str
    code: int
    stdout: bytes
    stderr: bytes

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

    :raise GuestError: an agent does not answer or refuses, or the time ran out: the commands were ended.
    :raise HostError: a supervisor does not answer.
    """
    parts: dict[tuple[int, bool], list[bytes]] = {}

    def take(rank: int, data: bytes, second: bool) -> None:
        parts.setdefault((rank, second), []).append(data)

    runner = Runner(control, command, take, None, stdin)
    outcomes: list[Outcome] = runner.run(ranks, timeout_s, ())
    for outcome in outcomes:
        if outcome.late:
            raise GuestError(f"{command.argv[0]} did not end within {timeout_s:g} s")
        if outcome.error is not None:
            name = "" if outcome.name in outcome.error else f"{outcome.name}: "
            raise (HostError if outcome.unreachable else GuestError)(f"{name}{outcome.error}", hint=outcome.hint)
    return [
        ExecResult(
            outcome.name,
            -outcome.signal if outcome.signal is not None else outcome.exit or 0,
            b"".join(parts.get((outcome.rank, False), ())),
            b"".join(parts.get((outcome.rank, True), ())),
        )
        for outcome in outcomes
    ]


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
