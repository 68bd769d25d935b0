# SPDX-License-Identifier: Apache-2.0
"""``pvc exec --pty`` on a real terminal: keys, its size, Ctrl-C, and a way out; and Ctrl-C without one."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from agents import build_agent
from fleet import Fleet, fleet

from pvc import codec
from tests.waits import wait_until

pytestmark = [
    pytest.mark.allow_run,  # agents and their client are programs
    pytest.mark.allow_sockets,  # ports of the agents, and the control port
]
CLIENT = """
import sys
from pathlib import Path
from pvc import codec
from pvc.model.cluster import ClusterRecord
from pvc.ops.control import Control
from pvc.ops.console import raw_terminal
from pvc.ops.execute import Command, Runner, total_code
from pvc.ops.jobdir import JobDir
from pvc.cli.outputs import Passed
record, jobdir, pty, *argv = sys.argv[1:]
control = Control(codec.loads(ClusterRecord, record), JobDir(Path(jobdir)))
runner = Runner(control, Command(tuple(argv), pty=pty == "1", env=("PS1=ready> ",)), Passed().take, 0)
try:
    with raw_terminal():
        sys.exit(total_code(runner.run((0,), None)))
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    program = build_agent(tmp_path_factory.getbasetemp().parent / "pvc-agent")
    with fleet(program, tmp_path_factory.mktemp("fleet"), 1) as found:
        yield found


class Terminal:
    """A client with a terminal of its own."""

    def __init__(self, one: Fleet, *argv: str, pty: bool = True) -> None:
        self.said = b""
        self.master, slave = os.openpty()
        self.resize(31, 97)
        words = [codec.dumps(one.control.record), os.fspath(one.jobdir.path), str(int(pty)), *argv]
        self.process = subprocess.Popen(
            ["setsid", "--ctty", sys.executable, "-c", CLIENT, *words],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=Path(__file__).parents[3],
        )
        os.close(slave)

    def resize(self, rows: int, columns: int) -> None:
        """As a person's window does; the kernel sends SIGWINCH."""
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, keys: bytes) -> None:
        """Type something."""
        os.write(self.master, keys)

    def wait(self, text: bytes, timeout_s: float = 60, *, keep: bool = False) -> None:
        """Return once ``text`` was seen; it is forgotten with all before it, without ``keep``."""
        deadline = time.monotonic() + timeout_s
        while text not in self.said:
            left = deadline - time.monotonic()
            assert left > 0, f"no {text!r} in {self.said!r}"
            if select.select([self.master], [], [], left)[0]:
                self._read()
        if not keep:
            self.said = self.said.partition(text)[2]

    def _read(self) -> None:
        try:
            self.said += os.read(self.master, 65536)
        except OSError:  # EIO: the other side is closed
            raise AssertionError(f"it has ended: {self.said!r}") from None

    def end(self) -> int:
        """The exit code."""
        code = self.process.wait(60)
        os.close(self.master)
        return code


def test_a_shell(one: Fleet) -> None:
    terminal = Terminal(one, "sh")
    terminal.wait(b"ready> ")
    terminal.type(b"stty size\r")
    terminal.wait(b"31 97\r\n")
    terminal.resize(12, 34)
    terminal.type(b"until [ \"$(stty size)\" = '12 34' ]; do sleep 0.05; done; echo now''resized\r")
    terminal.wait(b"nowresized")
    # It says so itself: then the shell has given it the terminal.
    terminal.type(b"sh -c \"echo be''gun; exec sleep 1000\"\r")
    terminal.wait(b"begun")
    terminal.type(b"\x03")
    terminal.wait(b"ready> ")
    terminal.type(b"exit 5\r")
    assert terminal.end() == 5


def test_the_way_out(one: Fleet) -> None:
    terminal = Terminal(one, "sh", "-c", "trap '' INT HUP; echo pid=$$=; while :; do sleep 1; done")
    terminal.wait(b"pid=")
    terminal.wait(b"=")
    terminal.type(b"\x03")
    terminal.type(b"\r")
    terminal.type(b"~")
    terminal.type(b".")
    assert terminal.end() == 130


def test_ctrl_c_without_a_terminal_in_the_guest(one: Fleet) -> None:
    terminal = Terminal(one, "sh", "-c", "trap 'echo caught; exit 9' INT; echo begun; sleep 1000 & wait", pty=False)
    terminal.wait(b"begun")
    terminal.process.send_signal(signal.SIGINT)
    terminal.wait(b"caught")
    assert terminal.end() == 9


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_the_commands(one: Fleet, number: signal.Signals) -> None:
    """Its own code is what comes of it; who says it twice does not wait for that."""
    name = number.name.removeprefix("SIG")
    terminal = Terminal(one, "sh", "-c", f"trap 'echo caught; exit 9' {name}; echo begun; sleep 1000 & wait", pty=False)
    terminal.wait(b"begun")
    terminal.process.send_signal(number)
    terminal.wait(b"caught")
    assert terminal.end() == 9
    terminal = Terminal(
        one, "sh", "-c", "trap 'echo caught' TERM HUP; echo begun; while :; do sleep 1; done", pty=False
    )
    terminal.wait(b"begun")
    terminal.process.send_signal(number)
    terminal.wait(b"caught")
    terminal.process.send_signal(signal.SIGTERM)
    assert terminal.end() == 128 + signal.SIGTERM


def test_a_lost_terminal_leaves_nothing(one: Fleet) -> None:
    """A person's window is closed: the client hears SIGHUP, the command ends."""
    terminal = Terminal(one, "sh", "-c", "echo pid=$$=; exec sleep 1000")
    terminal.wait(b"pid=")
    terminal.wait(b"=", keep=True)
    pid = int(terminal.said.partition(b"=")[0])
    os.close(terminal.master)
    assert terminal.process.wait(60) == 128 + signal.SIGHUP
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"))
