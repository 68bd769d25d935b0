"""The nodes' cgroups on the host: make, enter, empty, remove."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from pvc.errors import HostError
from pvc.testbed.layout import cgroup_path
from pvc.testbed.model import CgroupMount

_V2_CONTROLLERS = ("cpuset", "cpu", "memory", "pids", "io")
# In the unified hierarchy a cgroup that hands controllers to its children must have no processes: those of the
# node that Slurm does not manage live here.
LEAF = "init"


def ensure_cgroup(mounts: Iterable[CgroupMount], testbed: str, node: str) -> None:
    """Make the cgroups of a node in every hierarchy.

    :raise HostError: the kernel refused.
    """
    for mount in mounts:
        path = Path(cgroup_path(mount.path, testbed, node))
        try:
            path.mkdir(parents=True, exist_ok=True)
            if mount.version == 2:
                _delegate(mount, path)
                (path / LEAF).mkdir(exist_ok=True)
            elif (path / "cpuset.cpus").exists():
                _fill_cpuset(mount, path)
        except OSError as err:
            raise HostError(f"cannot make cgroup {path}") from err


def _delegate(mount: CgroupMount, path: Path) -> None:
    parents = [each for each in reversed(path.parents) if each.is_relative_to(mount.path)]
    for directory in [*parents, path]:
        available = (directory / "cgroup.controllers").read_text().split()
        for controller in _V2_CONTROLLERS:
            if controller in available:
                with suppress(OSError):
                    (directory / "cgroup.subtree_control").write_text(f"+{controller}")


def _fill_cpuset(mount: CgroupMount, path: Path) -> None:
    """A new cpuset (v1) is empty, and nothing can run in it: copy the parent's from the top down."""
    for directory in [each for each in reversed((path, *path.parents)) if each.is_relative_to(mount.path)][1:]:
        for name in ("cpuset.cpus", "cpuset.mems"):
            if not (directory / name).read_text().strip():
                (directory / name).write_text((directory.parent / name).read_text())


def enter_cgroup(mounts: Iterable[CgroupMount], testbed: str, node: str) -> None:
    """Move the calling process into a node's cgroups.

    :raise HostError: they are not there.
    """
    move_process(mounts, testbed, node, 0)


def move_process(mounts: Iterable[CgroupMount], testbed: str, node: str, pid: int) -> None:
    """Move a process (0: the calling one) into a node's cgroups.

    :raise HostError: they are not there, or the process is gone.
    """
    for mount in mounts:
        leaf = f"/{LEAF}" if mount.version == 2 else ""
        path = Path(cgroup_path(mount.path, testbed, node) + leaf) / "cgroup.procs"
        try:
            path.write_text(str(pid))
        except OSError as err:
            raise HostError(f"cannot move process {pid} into cgroup {path.parent}") from err


def find_processes(mounts: Iterable[CgroupMount], testbed: str, node: str = "") -> set[int]:
    """Every process in the cgroups of a node, or of the whole testbed."""
    pids: set[int] = set()
    for mount in mounts:
        for directory in _walk(Path(cgroup_path(mount.path, testbed, node))):
            with suppress(OSError):
                pids.update(int(word) for word in (directory / "cgroup.procs").read_text().split())
    return pids


def kill_processes(mounts: Iterable[CgroupMount], testbed: str, node: str = "", *, timeout_s: float = 15.0) -> None:
    """Kill every process in the cgroups of a node, or of the whole testbed, and wait until none is left.

    :raise HostError: some outlive SIGKILL for longer than ``timeout_s``.
    """
    every = tuple(mounts)
    deadline = time.monotonic() + timeout_s
    for path in (cgroup_path(mount.path, testbed, node) for mount in every):
        # SIGKILL does not reach what Slurm has frozen (v1) before it is thawed.
        for directory in _walk(Path(path)):
            with suppress(OSError):
                state = directory / "freezer.state"
                if state.exists() and state.read_text().strip() != "THAWED":
                    state.write_text("THAWED")
    while pids := find_processes(every, testbed, node) - {0, os.getpid()}:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise HostError(f"processes {sorted(pids)} of testbed {testbed!r} cannot be killed")
        time.sleep(0.005)


def remove_cgroups(mounts: Iterable[CgroupMount], testbed: str, node: str = "", *, timeout_s: float = 10.0) -> None:
    """Remove a node's (or the testbed's) cgroups, which must have no processes, and the parent when it is empty.

    :raise HostError: one is still in use after ``timeout_s``.
    """
    deadline = time.monotonic() + timeout_s
    for mount in mounts:
        top = Path(cgroup_path(mount.path, testbed, node))
        while top.exists():
            last: OSError | None = None
            for directory in sorted(_walk(top), key=lambda each: len(each.parts), reverse=True):
                try:
                    directory.rmdir()
                except OSError as err:  # the last process may not be reaped yet
                    last = err
            if last is not None and top.exists():
                if time.monotonic() > deadline:
                    raise HostError(f"cannot remove cgroup {top}") from last
                time.sleep(0.01)
        with suppress(OSError):
            if not node:
                top.parent.rmdir()


def _walk(top: Path) -> Iterator[Path]:
    for directory, _, _ in os.walk(top):
        yield Path(directory)
