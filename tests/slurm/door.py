# SPDX-License-Identifier: Apache-2.0
"""Commands in a testbed's nodes, hundreds in a suite: one process forks itself for each, in place of a new interpreter.

    python -m tests.slurm.door LINK

``pvc testbed exec`` is the same with an interpreter and its imports before it, 0.3 s of a core.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
import weakref
from collections.abc import Sequence
from pathlib import Path

from pvc.errors import PvcError
from pvc.testbed import enter, lifecycle
from pvc.testbed.place import Place, find_place

_TOP = Path(__file__).resolve().parents[2]
_NUMBER = struct.Struct("i")
# What one message may have, and the most of standard input; the kernel's own default is less than either.
_BUFFER = 1 << 20


class Door:
    """The way into the nodes of a testbed."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
        with theirs:
            # Not of this session: a Ctrl-C is for the tests, which still have commands to give then.
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.slurm.door", str(theirs.fileno())],
                cwd=_TOP,
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        weakref.finalize(self, _close, self._link, process)

    def run(
        self, argv: Sequence[str], node: str, user: str, stdin: bytes, timeout_s: float
    ) -> tuple[int, bytes, bytes]:
        """(exit code, output, errors) of a command.

        :raise subprocess.TimeoutExpired: it did not end in time; it was killed.
        """
        out, err = os.memfd_create("out"), os.memfd_create("err")
        status, theirs = os.pipe()
        try:
            given = _filled_pipe(stdin)
            try:
                text = json.dumps([self._name, node, user, *argv]).encode()
                socket.send_fds(self._link, [text], [given, out, err, theirs])
            finally:
                os.close(given)
                os.close(theirs)
            code = _wait_status(status, argv, timeout_s)
            return code, _read_all(out), _read_all(err)
        finally:
            for fd in (out, err, status):
                os.close(fd)


def _close(link: socket.socket, process: subprocess.Popen[bytes]) -> None:
    link.close()
    process.wait()


def _filled_pipe(content: bytes) -> int:
    """A pipe's end from which just this can be read."""
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb", buffering=0) as stream:
        if content:
            fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, _BUFFER)
            assert stream.write(content) == len(content) <= _BUFFER
    return reading


def _wait_status(status: int, argv: Sequence[str], timeout_s: float) -> int:
    """The exit code of a command, from what the process that started it says: its own number, then the code."""
    deadline = time.monotonic() + timeout_s
    said, ended = b"", False
    try:
        while len(said) < 2 * _NUMBER.size:
            if not select.select([status], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise subprocess.TimeoutExpired(list(argv), timeout_s)
            part = os.read(status, 2 * _NUMBER.size - len(said))
            assert part, f"nobody waits for {argv} any more"
            said += part
        ended = True
    finally:
        if not ended and len(said) >= _NUMBER.size:
            # The command goes with it.
            os.kill(_NUMBER.unpack_from(said)[0], signal.SIGKILL)
    return int(_NUMBER.unpack_from(said, _NUMBER.size)[0])


def _read_all(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)


def main() -> None:
    """Serve until the other end is closed."""
    with socket.socket(fileno=int(sys.argv[1])) as link:
        link.set_inheritable(False)
        # Nobody waits here for what is forked.
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        while True:
            text, fds, _, _ = socket.recv_fds(link, _BUFFER, 4)
            if not text:
                return
            if os.fork() == 0:
                link.close()
                _execute(json.loads(text), fds)
            for fd in fds:
                os.close(fd)


def _execute(words: list[str], fds: list[int]) -> None:
    code = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for number, fd in enumerate(fds[:3]):
            os.dup2(fd, number)
            os.close(fd)
        status = fds[3]
        os.set_inheritable(status, False)
        os.write(status, _NUMBER.pack(os.getpid()))
        code = _enter(find_place(words[0]), words[1], words[2], words[3:])
        os.write(status, _NUMBER.pack(code))
    finally:
        os._exit(code)


def _enter(place: Place, node: str, user: str, argv: list[str]) -> int:
    try:
        pid = lifecycle.require_node(place, node)
        return enter.execute(enter.read_plan(place.state_dir, node), pid, argv, user=user, extra_env={})
    except PvcError as err:
        os.write(2, f"pvc: {err}\n".encode())
        return err.exit_code


if __name__ == "__main__":
    main()
