"""Commands in guests for programs: their output as bytes, from any thread, also beside another event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from pvc.channel.frames import CLIENT_BUDGET, SECOND, WINDOW
from pvc.errors import GuestError, PvcError
from pvc.ops.control import Control
from pvc.ops.status import find_endpoint
from pvc.ops.streams import Channel, Stream, raise_closed

Result = TypeVar("Result")


@dataclass(frozen=True)
class ExecWish:
    """A command for guests: an argument list, never a shell's line."""

    argv: tuple[str, ...]
    user: str = "root"
    cwd: str | None = None
    env: tuple[tuple[str, str], ...] = ()
    stdin: bytes | None = None

    def words(self) -> list[tuple[str, str]]:
        """As pvc-agent(7) wants them."""
        words = [("op", "exec"), ("user", self.user), *(("arg", each) for each in self.argv)]
        words += [("env", f"{name}={value}") for name, value in self.env]
        words += [("cwd", self.cwd)] if self.cwd is not None else []
        return [*words, *([("stdin", "0")] if self.stdin is None else [])]


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


def run_command(control: Control, ranks: Sequence[int], wish: ExecWish, timeout_s: float | None) -> list[ExecResult]:
    """Run a command in VMs, in all at the same time; results in the order of ``ranks``.

    :raise GuestError: an agent does not answer or refuses, or the time ran out: the commands were ended.
    :raise HostError: a supervisor does not answer.
    """
    return run_async(_run_command(control, ranks, wish, timeout_s))


def check_port(control: Control, rank: int, port: int) -> None:
    """:raise PvcError: nothing in the VM takes connections at its port."""
    words = [("op", "connect"), ("net", "tcp"), ("host", "127.0.0.1"), ("port", str(port))]
    run_async(_try(control, rank, words))


def run_async(work: Coroutine[Any, Any, Result]) -> Result:
    """Run it in a loop of its own thread: the caller may have a loop of its own, as notebooks do."""
    found: list[Result] = []
    errors: list[BaseException] = []

    def serve() -> None:
        try:
            found.append(asyncio.run(work))
        except BaseException as err:  # noqa: BLE001  it is the caller's
            errors.append(err)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return found[0]


async def _run_command(
    control: Control, ranks: Sequence[int], wish: ExecWish, timeout_s: float | None
) -> list[ExecResult]:
    channels: dict[str, asyncio.Task[Channel]] = {}
    window = max(1 << 12, min(WINDOW, CLIENT_BUDGET // 2 // max(1, len(ranks))))

    async def one(rank: int) -> ExecResult:
        endpoint = find_endpoint(control.record, rank)
        if endpoint.node not in channels:
            channels[endpoint.node] = asyncio.ensure_future(Channel.connect(control, endpoint))
        stream = await (await channels[endpoint.node]).open(rank, wish.words(), window)
        return await _collect(rank, stream, wish.stdin)

    try:
        async with asyncio.timeout(timeout_s):
            return await asyncio.gather(*(one(rank) for rank in ranks))
    except TimeoutError:
        raise GuestError(f"{wish.argv[0]} did not end within {timeout_s:g} s") from None
    finally:
        for task in channels.values():
            with suppress(PvcError):
                await (await task).close()


async def _collect(rank: int, stream: Stream, stdin: bytes | None) -> ExecResult:
    parts: tuple[list[bytes], list[bytes]] = ([], [])

    async def feed() -> None:
        with suppress(GuestError):  # it ends without having read all
            await stream.write(stdin or b"")
            await stream.end()

    feeding = asyncio.ensure_future(feed()) if stdin is not None else None
    try:
        while (piece := await stream.read()) is not None:
            parts[bool(piece[0] & SECOND)].append(piece[1])
        result = await stream.closed
    finally:
        if feeding is not None:
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)
    try:
        raise_closed(result)
    except GuestError as err:
        prefix = "" if result.get("from") == "supervisor" else f"vm{rank}: "
        raise GuestError(f"{prefix}{err}", hint=err.hint) from None
    number = result.get("signal", "")
    code = -int(number) if number.isdecimal() else int(result.get("exit", "255") or 255)
    return ExecResult(f"vm{rank}", code, b"".join(parts[0]), b"".join(parts[1]))


async def _try(control: Control, rank: int, words: list[tuple[str, str]]) -> None:
    channel = await Channel.connect(control, find_endpoint(control.record, rank))
    try:
        stream = await channel.open(rank, words, 1 << 12)
        await stream.note()
    finally:
        await channel.close()
