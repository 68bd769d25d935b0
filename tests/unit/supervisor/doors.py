# SPDX-License-Identifier: Apache-2.0
"""A control port in a process of its own, as a supervisor has it, and strangers in front of it."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pvc import codec
from pvc.model.cluster import ClusterKeys, NodeEndpoint
from pvc.ops.control import Control
from pvc.ops.jobdir import JobDir
from pvc.supervisor import control as control_module
from pvc.supervisor.journal import Journal
from tests.unit.ops.worlds import make_record

ROOT = Path(__file__).resolve().parents[3]
# Of a TLS handshake: a record of 512 bytes, which never come.
BEGINNING = b"\x16\x03\x01\x02\x00\x01"


@dataclass(frozen=True)
class Port:
    """A control port: its number, its process, and its owner's way in."""

    number: int
    pid: int
    owner: Control

    @property
    def endpoint(self) -> NodeEndpoint:
        return self.owner.record.endpoints[0]

    def ask(self) -> dict[str, Any]:
        """What the cluster's owner hears."""
        return self.owner.ask(self.endpoint, {"op": "status"}, 60)

    def count_sockets(self) -> int:
        """Sockets that the process has open."""
        count = 0
        for each in Path(f"/proc/{self.pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # closed meanwhile
                count += os.readlink(each).startswith("socket:")
        return count

    def read_kib(self) -> int:
        """Memory of the process that is nobody else's."""
        lines = Path(f"/proc/{self.pid}/smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


@contextmanager
def served(jobdir: JobDir, keys: ClusterKeys) -> Iterator[Port]:
    """A port while the block runs."""
    argv = [sys.executable, "-m", "tests.unit.supervisor.doors"]
    with subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(codec.dumps(keys) + "\n")
            process.stdin.flush()
            number = int(process.stdout.readline())
            record = make_record(NodeEndpoint("n1", "127.0.0.1", number))
            yield Port(number, process.pid, Control(record, jobdir))
        finally:
            process.kill()


@contextmanager
def strangers(number: int, count: int, said: bytes = b"") -> Iterator[list[socket.socket]]:
    """Connections that begin with ``said`` and then say nothing."""
    with ExitStack() as stack:
        links = []
        for _ in range(count):
            link = stack.enter_context(socket.create_connection(("127.0.0.1", number), timeout=60))
            if said:
                link.sendall(said)
            links.append(link)
        yield links


async def _serve() -> None:
    async def nothing(*_: Any) -> Any:
        raise AssertionError("nobody asks for it")

    keys = codec.loads(ClusterKeys, sys.stdin.readline())
    control = control_module.Control(lambda: (), nothing, nothing, Journal())
    sys.stdout.write(f"{await control.start('127.0.0.1', keys)}\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve())
