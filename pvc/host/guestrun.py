# SPDX-License-Identifier: Apache-2.0
"""A guest that does one thing and ends: QEMU as a child that cannot outlive us, heard over its serial ports."""

from __future__ import annotations

import json
import os
import selectors
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from pvc import run
from pvc.errors import GuestError
from pvc.plan.qemudrives import find_moved
from pvc.texts import clean_text

_KEPT = 64 << 10
_MAX_LINE = 8192


@dataclass(frozen=True)
class GuestFds:
    """The ends of socket pairs that QEMU gets."""

    qmp: int
    console: int
    port: int


@dataclass
class _Heard:
    """What came over a port: whole lines so far, and a beginning."""

    tell: Callable[[str], None]
    rest: bytes = b""

    def feed(self, data: bytes) -> None:
        """Tell each line, without its end and without what would do something to a terminal."""
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            self.tell(clean_text(line.decode(errors="replace").rstrip("\r"), _MAX_LINE, console=True))
        self.rest = self.rest[-_MAX_LINE:]


@dataclass(frozen=True)
class GuestEnd:
    """How it ended (``code`` None: not in time), what QEMU said, and the last that the guest's console did."""

    code: int | None
    stderr: str
    console: bytes


@dataclass
class _Run:
    qmp: socket.socket
    pidfd: int
    heard: _Heard
    console: bytearray = field(default_factory=bytearray)
    answers: bytes = b""
    going: bool = False


def run_guest(
    plan: Callable[[GuestFds], Sequence[str]],
    on_line: Callable[[str], None],
    deadline: Callable[[], float],
    files: Sequence[int] = (),
) -> GuestEnd:
    """Run QEMU (started with ``-S``) to its end; each line of the guest's second serial port goes to ``on_line``.

    ``deadline``: when it has to be over, by the monotonic clock; asked again whenever something happened. ``files``:
    open ones that QEMU inherits by their numbers; the guest does not run when a header of theirs names others.

    :raise GuestError: QEMU does not start it.
    :raise HostError: it cannot be started.
    """
    pairs = [socket.socketpair() for _ in range(3)]
    qmp, console, port = (ours for ours, _ in pairs)
    fds = GuestFds(*(theirs.fileno() for _, theirs in pairs))
    with tempfile.TemporaryFile() as errors:
        try:
            argv = run.bound(plan(fds))
            process = run.spawn(
                argv, stdout=run.DEVNULL, stderr=errors, pass_fds=(fds.qmp, fds.console, fds.port, *files)
            )
            pidfd = os.pidfd_open(process.pid)
            try:
                for _, theirs in pairs:
                    theirs.close()
                state = _Run(qmp, pidfd, _Heard(on_line))
                code = process.wait() if _listen(state, console, port, deadline) else None
            finally:
                process.kill()
                process.wait()
                os.close(pidfd)
        finally:
            for each in (end for pair in pairs for end in pair):
                each.close()
        errors.seek(0)
        said = errors.read(_KEPT).decode(errors="replace").strip()
    return GuestEnd(code, said, bytes(state.console))


def _listen(state: _Run, console: socket.socket, port: socket.socket, deadline: Callable[[], float]) -> bool:
    """Hear all until QEMU ends; False when it did not in time."""
    with selectors.DefaultSelector() as selector:
        for each in (state.qmp, console, port):
            selector.register(each, selectors.EVENT_READ)
        selector.register(state.pidfd, selectors.EVENT_READ)
        while True:
            left = deadline() - time.monotonic()
            if left <= 0:
                return False
            ready = {key.fileobj for key, _ in selector.select(left)}
            for each in (console, port, state.qmp):
                if each in ready and not _take(state, each, console, port):
                    selector.unregister(each)
            if state.pidfd in ready:
                # What is in the sockets came before its end.
                for each in (console, port):
                    each.setblocking(False)
                    with suppress(BlockingIOError):
                        while _take(state, each, console, port):
                            pass
                return True


def _take(state: _Run, source: socket.socket, console: socket.socket, port: socket.socket) -> bool:
    """Hear what there is; False at the end."""
    try:
        data = source.recv(65536)
    except ConnectionResetError:
        return False
    if source is console:
        state.console += data
        del state.console[:-_KEPT]
    elif source is port:
        state.heard.feed(data)
    elif not state.going:
        _answer(state, data)
    return bool(data)


def _answer(state: _Run, data: bytes) -> None:
    """Have the guest go on once QEMU's monitor greets (qmp-spec: capabilities are negotiated first)."""
    state.answers += data
    *lines, state.answers = state.answers.split(b"\n")
    for line in lines:
        message = json.loads(line) if line.strip() else {}
        if "QMP" in message:
            look = b'{"execute": "query-named-block-nodes", "arguments": {"flat": true}, "id": "look"}'
            state.qmp.sendall(b'{"execute": "qmp_capabilities"}\n' + look + b"\n")
        elif message.get("id") == "look":
            if find_moved(message["return"]) is not None:
                raise GuestError("the image is refused: its header was changed, and names another file for its data")
            state.qmp.sendall(b'{"execute": "cont", "id": "go"}\n')
        elif message.get("id") == "go":
            state.going = True
            if "error" in message:
                raise GuestError(f"QEMU does not start the guest: {message['error'].get('desc')}")
