# SPDX-License-Identifier: Apache-2.0
"""The logs of VMs: what their consoles, their supervisors and the cluster's launcher have said."""

from __future__ import annotations

import ssl
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pvc.errors import GuestError, HostError, PvcError
from pvc.ops.control import Control, close_quietly, in_parallel, send_request
from pvc.ops.execute import Command, Runner
from pvc.ops.jobdir import JobDir
from pvc.ops.remote import run_command
from pvc.ops.status import find_endpoint
from pvc.texts import clean_text

# Where a log is kept, and what it is, for the help texts.
SOURCES = {
    "console": "the VM's serial console",
    "supervisor": "what the VM's supervisor did and saw",
    "hooks": "what the hooks of the VM's template said",
    "launcher": "what the launcher and all supervisors wrote to standard error",
    "cloud-init": "what cloud-init and the programs that it ran wrote in the guest, by the agent",
}
# Files of guests, which their agents read.
_IN_GUEST = {"cloud-init": "/var/log/cloud-init-output.log"}
_GUEST_S = 60.0
_CONNECT_S = 20.0
_SILENCE_S = 60.0
_CHUNK = 1 << 16
# What is longer is cut, and a guest that ends none fills nobody's memory.
_LINE = 1 << 16
Write = Callable[[bytes], None]


@dataclass(frozen=True)
class LogWish:
    """Which log, its last ``lines`` (None: all of it), and whether to go on with what is said later."""

    source: str = "console"
    lines: int | None = None
    follow: bool = False


def read_logs(control: Control, ranks: Sequence[int], wish: LogWish, write: Callable[[int], Write]) -> None:
    """The log of each VM, by ``write(rank)``; of several, those that are followed come at the same time.

    :raise PvcError: a VM has no such log; the others' were read.
    """
    if wish.source in _IN_GUEST:
        _read_in_guests(control, ranks, wish, write)
        return
    errors: list[PvcError] = []
    lock = threading.Lock()

    def read(rank: int) -> None:
        out = write(rank)

        def put(data: bytes) -> None:
            with lock:
                out(data)

        try:
            read_log(control, rank, wish, put)
        except PvcError as err:
            errors.append(err)

    if wish.follow:
        in_parallel(read, ranks, len(ranks))
    else:
        for rank in ranks:
            read(rank)
    if errors:
        raise errors[0]


def _read_in_guests(control: Control, ranks: Sequence[int], wish: LogWish, write: Callable[[int], Write]) -> None:
    """A file of the guests.

    :raise GuestError: a guest has no such file, or no agent.
    """
    path = _IN_GUEST[wish.source]
    if wish.follow:
        _follow_in_guests(control, ranks, path, wish, write)
        return
    argv = ("cat", path) if wish.lines is None else ("tail", "-n", str(wish.lines), path)
    failed: list[str] = []
    for result, rank in zip(run_command(control, ranks, Command(argv, stdin=False), _GUEST_S), ranks, strict=True):
        if result.code:
            failed.append(f"{result.vm}: {clean_text(result.stderr.decode(errors='replace').strip())}")
        else:
            write(rank)(result.stdout)
    if failed:
        raise GuestError(f"no log of {wish.source}: {'; '.join(failed[:5])}")


def _follow_in_guests(
    control: Control, ranks: Sequence[int], path: str, wish: LogWish, write: Callable[[int], Write]
) -> None:
    """Also a file that is not there yet, for as long as the guests run.

    :raise GuestError: a guest has no agent, or has ended.
    """
    outs = {rank: write(rank) for rank in ranks}

    def take(rank: int, data: bytes, second: bool) -> None:
        if not second:  # tail(1) says there that it waits
            outs[rank](data)

    command = Command(("tail", "-n", "+1" if wish.lines is None else str(wish.lines), "-F", path), stdin=False)
    outcomes = Runner(control, command, take, None).run(ranks, None, ())
    failed = [f"{each.name}: {each.error}" for each in outcomes if each.error is not None]
    if failed:
        hints = [each.hint for each in outcomes if each.hint is not None]
        raise GuestError(f"no more of {wish.source}: {'; '.join(failed[:5])}", hint=hints[0] if hints else None)


def read_log(control: Control, rank: int, wish: LogWish, write: Write) -> None:
    """One VM's log.

    :raise PvcError: it has none, or its supervisor does not answer.
    """
    endpoint = find_endpoint(control.record, rank)
    try:
        connection = control.connect(endpoint, _CONNECT_S)
    except HostError as err:
        raise HostError(str(err), hint="pvc logs --source launcher shows what is left of its words") from err
    request = {"op": "log", "vm": rank, "source": wish.source, "lines": wish.lines, "follow": wish.follow}
    try:
        with control.talking():
            _, data = send_request(connection, request, endpoint.node)
            connection.settimeout(None if wish.follow else _SILENCE_S)
            _pass_on(connection, data, write, endpoint.node)
    finally:
        close_quietly(connection)


def _pass_on(connection: ssl.SSLSocket, data: bytes, write: Write, node: str) -> None:
    """A log may be empty yet, so its end is what the connection says."""
    try:
        while data or (data := connection.recv(_CHUNK)):
            write(data)
            data = b""
    except OSError as err:
        raise HostError(f"the supervisor on {node} stopped answering") from err


def read_launcher_log(control: Control, lines: int | None) -> bytes:
    """What the launcher has collected in the cluster's directory.

    :raise HostError: it cannot be read.
    """
    try:
        with JobDir.of(control.record.job_id).log.open("rb") as stream:
            return b"".join(deque(stream, lines) if lines is not None else stream)
    except FileNotFoundError:
        return b""
    except OSError as err:
        raise HostError("cannot read the launcher's log") from err


class Lines:
    """Cuts what comes into whole lines fit for anybody's terminal, each after ``prefix``."""

    def __init__(self, write: Write, prefix: str = "") -> None:
        self._write = write
        self._prefix = prefix
        self._rest = b""

    def put(self, data: bytes) -> None:
        """Take in more of the text."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _LINE:
            lines.append(self._rest)
            self._rest = b""
        self._write("".join(self._show(line) for line in lines).encode(errors="replace"))

    def end(self) -> None:
        """Nothing more comes: what is left is a line."""
        if self._rest:
            self.put(b"\n")

    def _show(self, line: bytes) -> str:
        return f"{self._prefix}{clean_text(line.decode(errors='replace'), _LINE, console=True).rstrip()}\n"
