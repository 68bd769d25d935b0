# SPDX-License-Identifier: Apache-2.0
"""Where a testbed is: its directory, its cgroups, the processes it remembers, its lock."""

from __future__ import annotations

import fcntl
import os
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pvc import codec, parse
from pvc.errors import HostError, UsageError
from pvc.testbed import facts, layout, processes
from pvc.testbed.model import CgroupMount, Record

DEFAULT_PARENT = Path("/var/lib/pvc-testbed")
_LOCK_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Place:
    """Where a testbed's state is; ``key`` names its cgroups, ``mounts`` are the host's hierarchies."""

    name: str
    key: str
    state_dir: Path
    mounts: tuple[CgroupMount, ...]

    def read_record(self) -> Record | None:
        """What ``up`` finished; None when there is nothing, or only half of it."""
        try:
            return codec.loads(Record, (self.state_dir / "testbed.json").read_bytes())
        except (OSError, ValueError):
            return None

    def find_node(self, node: str) -> int | None:
        """The pid of a node's init; None when the node is down."""
        return processes.find_daemon(self.state_dir / "nodes" / node / "init.pid")

    def find_switch(self) -> int | None:
        """The pid of the process that holds the switch's network namespace."""
        return processes.find_daemon(self.state_dir / "switch.pid")

    def exists(self) -> bool:
        """Whether anything of the testbed is there."""
        return self.state_dir.exists() or any(
            Path(layout.cgroup_path(mount.path, self.key)).exists() for mount in self.mounts
        )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the testbed's lock; its file goes with the testbed.

        :raise HostError: another command held it for two minutes.
        """
        path = self.state_dir.parent / f".{self.name}.lock"
        fd = _lock(path)
        try:
            yield
        finally:
            if not self.exists():
                path.unlink(missing_ok=True)
                if path.parent == DEFAULT_PARENT:
                    with suppress(OSError):
                        path.parent.rmdir()
            os.close(fd)


def find_place(name: str) -> Place:
    """The place of a testbed of this name, which need not exist.

    :raise UsageError: not a name.
    """
    try:
        parse.parse_name(name)
    except ValueError as err:
        raise UsageError(f"the testbed's name {err}") from None
    parent = Path(os.environ.get("PVC_TESTBED_DIR") or DEFAULT_PARENT).absolute()
    # Testbeds of one name in two directories are two testbeds.
    key = name if parent == DEFAULT_PARENT else f"{name}.{zlib.crc32(os.fsencode(parent)):08x}"
    return Place(name, key, parent / name, facts.parse_cgroup_mounts(Path("/proc/self/mountinfo").read_text()))


def find_names() -> list[str]:
    """Testbeds that have a directory."""
    parent = find_place("any").state_dir.parent
    try:
        return sorted(each.name for each in parent.iterdir() if each.is_dir())
    except FileNotFoundError:
        return []


def _lock(path: Path) -> int:
    """A descriptor that holds the lock until it is closed; the kernel frees the lock of a process that dies."""
    deadline = time.monotonic() + _LOCK_TIMEOUT_S
    while True:
        path.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(fd).st_nlink:
                    return fd
            except BlockingIOError:
                pass
            os.close(fd)  # held by another, or removed by another while this one waited for it
        if time.monotonic() > deadline:
            raise HostError(f"another command has held {path} for {_LOCK_TIMEOUT_S:g} s")
        time.sleep(0.02)
