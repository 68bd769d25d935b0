# SPDX-License-Identifier: Apache-2.0
"""The nodes' cgroups on the host: make, enter, empty, remove."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from pvc import files
from pvc.errors import HostError
from pvc.testbed import syscalls
from pvc.testbed.layout import cgroup_path
from pvc.testbed.model import CgroupMount

# What Slurm uses in the unified hierarchy, and "pids": slurmstepd (22.05) does not know the last one of the kernel's
# list, "cpuset cpu io memory hugetlb pids rdma misc", because of the newline behind it.
_V2_CONTROLLERS = ("cpuset", "cpu", "memory", "pids")
# What was switched on at the top of the host's hierarchy, to be switched off with the last testbed.
_SWITCHED_ON = Path("/run/pvc-testbed.controllers")
# In the unified hierarchy a cgroup that hands controllers to its children may have no processes itself: those of
# the node that Slurm does not manage live here. slurmd (22.05) takes the cgroup of PID 1 less this very name, which
# is systemd's, for the top of the node's hierarchy.
LEAF = "init.scope"
# slurmd makes its scope in here and expects the directory, as systemd makes it.
SLICE = "system.slice"


def ensure_cgroup(mounts: Iterable[CgroupMount], testbed: str, node: str) -> None:
    """Make the cgroups of a node in every hierarchy.

    :raise HostError: the kernel refused.
    """
    for mount in mounts:
        path = Path(cgroup_path(mount.path, testbed, node))
        try:
            path.mkdir(parents=True, exist_ok=True)
            if mount.version == 2:
                for name in (LEAF, SLICE):
                    (path / name).mkdir(exist_ok=True)
                for parent in [each for each in reversed(path.parents) if each.is_relative_to(mount.path)]:
                    added = _delegate(parent)
                    if added and parent == Path(mount.path):
                        _SWITCHED_ON.write_text(" ".join({*files.read_text(_SWITCHED_ON, "").split(), *added}))
            elif (path / "cpuset.cpus").exists():
                _fill_cpuset(mount, path)
        except OSError as err:
            raise HostError(f"cannot make cgroup {path}") from err


def _delegate(directory: Path) -> set[str]:
    """Hand the controllers that a directory of the unified hierarchy has to those below it; the ones that are new."""
    switch = directory / "cgroup.subtree_control"
    before = set(switch.read_text().split())
    for controller in sorted({*_V2_CONTROLLERS} & {*(directory / "cgroup.controllers").read_text().split()} - before):
        # One that the host refuses (realtime processes forbid "cpu") is one that Slurm does without.
        with suppress(OSError):
            switch.write_text(f"+{controller}")
    return set(switch.read_text().split()) - before


def _restore_controllers(top: Path) -> None:
    """Switch off what the first testbed switched on; a controller that others use by now stays."""
    for controller in files.read_text(_SWITCHED_ON, "").split():
        with suppress(OSError):
            (top / "cgroup.subtree_control").write_text(f"-{controller}")
    _SWITCHED_ON.unlink(missing_ok=True)


def _fill_cpuset(mount: CgroupMount, path: Path) -> None:
    """A new cpuset (v1) is empty, and nothing can run in it: copy the parent's from the top down."""
    for directory in [each for each in reversed((path, *path.parents)) if each.is_relative_to(mount.path)][1:]:
        for name in ("cpuset.cpus", "cpuset.mems"):
            if not (directory / name).read_text().strip():
                (directory / name).write_text((directory.parent / name).read_text())


def enter_new_namespace(mounts: Iterable[CgroupMount], testbed: str, node: str) -> None:
    """Move the calling process into a node's cgroups and make them the top of a new cgroup namespace.

    :raise HostError: they are not there.
    :raise OSError: the kernel has no cgroup namespaces.
    """
    every = tuple(mounts)
    for mount in every:
        _write_procs(Path(cgroup_path(mount.path, testbed, node)), 0)
    syscalls.unshare(syscalls.CLONE_NEWCGROUP)
    for mount in every:
        if mount.version == 2:
            path = Path(cgroup_path(mount.path, testbed, node))
            _write_procs(path / LEAF, 0)
            _delegate(path)
            _delegate(path / SLICE)


def enter_cgroup(mounts: Iterable[CgroupMount], testbed: str, node: str, pid: int = 0) -> None:
    """Move a process (0: the calling one) into a node's cgroups, where those outside of jobs are.

    :raise HostError: they are not there, or the process is gone.
    """
    for mount in mounts:
        path = Path(cgroup_path(mount.path, testbed, node))
        _write_procs(path / LEAF if mount.version == 2 else path, pid)


def _write_procs(path: Path, pid: int) -> None:
    try:
        (path / "cgroup.procs").write_text(str(pid))
    except OSError as err:
        raise HostError(f"cannot move process {pid} into cgroup {path}") from err


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
    # All stand still before one is killed: who sees another end would tidy up after it, as no power failure lets them.
    stopped: set[int] = set()
    while new := _others(every, testbed, node) - stopped:
        _signal(new, signal.SIGSTOP)
        stopped |= new
    while pids := _others(every, testbed, node):
        _signal(pids, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise HostError(f"processes {sorted(pids)} of testbed {testbed!r} cannot be killed")
        time.sleep(0.005)


def _others(mounts: Iterable[CgroupMount], testbed: str, node: str) -> set[int]:
    return find_processes(mounts, testbed, node) - {0, os.getpid()}


def _signal(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


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
                if mount.version == 2:
                    _restore_controllers(Path(mount.path))


def remove_empty_jobs(mounts: Iterable[CgroupMount], *, older_than_s: float = 2.0) -> bool:
    """In a node with the unified hierarchy: remove the cgroups of jobs that are over; whether any job's is left.

    slurmstepd (22.05) moves itself to the top cgroup before it removes its own; the kernel allows that at the
    hierarchy's real root only, which a node's top is not. A step that is being made has none of this age.
    """
    left = False
    for mount in mounts:
        for job in Path(mount.path).glob(f"{SLICE}/*_slurmstepd.scope/job_*") if mount.version == 2 else ():
            with suppress(OSError):
                left = True
                old = time.time() - max(each.stat().st_mtime for each in _walk(job)) > older_than_s
                if old and "populated 0" in (job / "cgroup.events").read_text():
                    for directory in sorted(_walk(job), key=lambda each: len(each.parts), reverse=True):
                        directory.rmdir()
    return left


def _walk(top: Path) -> Iterator[Path]:
    for directory, _, _ in os.walk(top):
        yield Path(directory)
