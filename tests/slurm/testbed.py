# SPDX-License-Identifier: Apache-2.0
"""A testbed for tests: run commands in its nodes, cut their power, and compare nodes before and after."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pvc.host.processes import read_start_ticks
from pvc.testbed import lifecycle, osroot
from pvc.testbed.model import TestbedSpec
from pvc.testbed.place import find_names, find_place
from tests.slurm.door import Door
from tests.waits import PATIENCE_S, wait_until

TOP = Path(__file__).resolve().parents[2]
_PREFIX = "pytest-"
# The Debian release of the nodes of all testbeds of these tests; nothing: this machine's programs.
OS = os.environ.get("PVC_TESTBED_OS", "")
PVC = (sys.executable, "-c", f"import sys; sys.path.insert(0, {str(TOP)!r}); from pvc.cli.main import main; main()")


@dataclass(frozen=True)
class Done:
    """A command that ended."""

    argv: tuple[str, ...]
    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Snapshot:
    """What a node holds that a job could leave behind, each part a sorted list of texts."""

    processes: list[str]
    links: list[str]
    nftables: list[str]
    mounts: list[str]
    cgroups: list[str]
    files: list[str]
    etcd: list[str]


class Testbed:
    """A testbed that is up."""

    __test__ = False

    def __init__(self, name: str, *, by_command: bool = False) -> None:
        """``by_command``: what ``run`` does is done by ``pvc testbed exec``, for tests of that."""
        self.name = name
        self.place = find_place(name)
        self._by_command = by_command
        self._door: Door | None = None

    @property
    def python(self) -> str:
        """The interpreter that has pvc, as users of the nodes find it."""
        record = self.place.read_record()
        assert record is not None
        return osroot.PYTHON if record.spec.os else str(TOP / ".venv" / "bin" / "python")

    def slurm(self) -> tuple[int, int]:
        """The release of Slurm: (22, 5)."""
        year, month = self.run(["sinfo", "--version"]).out.split()[-1].split(".")[:2]
        return int(year), int(month)

    def argv(self, argv: Sequence[str], *, node: str = "login", user: str = "student") -> list[str]:
        """The host's command that runs ``argv`` in a node."""
        return [*PVC, "testbed", "exec", "--name", self.name, "--node", node, "--user", user, "--", *argv]

    def start(self, argv: Sequence[str], *, node: str = "login", user: str = "student", **options: Any) -> Any:
        """Start a command in a node: a Popen object of text streams, to be ended by the test."""
        settings: dict[str, Any] = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "text": True,
        }
        return subprocess.Popen(self.argv(argv, node=node, user=user), **(settings | options))

    def run(
        self,
        argv: Sequence[str] | str,
        *,
        node: str = "login",
        user: str = "student",
        check: bool = True,
        timeout: float = PATIENCE_S,
        stdin: str = "",
        env: Mapping[str, str] | None = None,
    ) -> Done:
        """Run a command (a text: with sh -c) in a node to its end."""
        words = ["sh", "-c", argv] if isinstance(argv, str) else list(argv)
        if env:
            words = ["env", *(f"{key}={value}" for key, value in env.items()), *words]
        run = self._run_by_command if self._by_command else self._run_by_door
        result = run(words, node, user, stdin, timeout)
        assert not check or result.code == 0, f"{words} ended with {result.code}\n{result.out}\n{result.err}"
        return result

    def _run_by_door(self, words: list[str], node: str, user: str, stdin: str, timeout: float) -> Done:
        self._door = self._door or Door(self.name)
        code, out, err = self._door.run(words, node, user, stdin.encode(), timeout)
        return Done(tuple(words), code, out.decode(), err.decode())

    def _run_by_command(self, words: list[str], node: str, user: str, stdin: str, timeout: float) -> Done:
        argv = self.argv(words, node=node, user=user)
        done = subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=timeout)
        return Done(tuple(words), done.returncode, done.stdout, done.stderr)

    def root(self, argv: Sequence[str] | str, node: str, *, check: bool = True, timeout: float = PATIENCE_S) -> str:
        """Run a command as root in a node and return its output."""
        return self.run(argv, node=node, user="root", check=check, timeout=timeout).out

    def nodes(self) -> list[str]:
        """The compute nodes."""
        record = self.place.read_record()
        assert record is not None
        return [node for node in record.nodes if node != "login"]

    def reload(self, *nodes: str) -> None:
        """Let these nodes, or all, take the configuration as its files are now."""
        for node in nodes or self.nodes():
            self.root(["pvc-node", "reload"], node)

    def crash(self, node: str) -> None:
        """Cut a node's power."""
        lifecycle.crash(self.place, node)

    def boot(self, node: str, *, wait: bool = True) -> None:
        """Start a crashed node again; ``wait``: until Slurm calls it idle."""
        lifecycle.boot(self.place, node, wait=wait)

    def log(self, node: str, name: str) -> str:
        """A log of a node: "slurmd", "pvc-node", "slurm/slurmctld", "init" ..."""
        path = self.log_path(node, name)
        return path.read_text(errors="replace") if path.exists() else ""

    def log_path(self, node: str, name: str) -> Path:
        """Its file as the host sees it."""
        return self.place.state_dir / "nodes" / node / "log" / f"{name}.log"

    def home(self, user: str = "student") -> Path:
        """A user's home as the host sees it."""
        return self.place.state_dir / "home" / user

    def node_states(self) -> dict[str, str]:
        """Slurm's word for each node ("idle", "drained" ...)."""
        rows = [line.split() for line in self.run(["sinfo", "-h", "-N", "-o", "%N %T"]).out.splitlines()]
        return {row[0]: row[1] for row in rows}

    def jobs(self) -> list[str]:
        """Ids of the jobs that are not over."""
        return self.run(["squeue", "-h", "-o", "%i"]).out.split()

    def wait_no_jobs(self, timeout: float = PATIENCE_S) -> None:
        """Wait until Slurm has no job left, those that are completing included."""
        wait_until(lambda: not self.jobs(), timeout, "jobs are left")

    def wait_idle(self, timeout: float = PATIENCE_S) -> None:
        """Wait until no node has a job, and none is out of service; "idle*" has not answered slurmctld for a moment."""
        wait_until(lambda: set(self.node_states().values()) == {"idle"}, timeout, "nodes are not idle")

    def snapshot(self, node: str) -> Snapshot:
        """What is on a node now."""
        script = (Path(__file__).parent / "snapshot.py").read_text()
        done = self.run(["/usr/bin/python3", "-I", "-"], node=node, user="root", stdin=script)
        return Snapshot(**json.loads(done.out))

    def assert_clean(self, before: Mapping[str, Snapshot], timeout: float = PATIENCE_S) -> None:
        """Every node is as it was in ``before``, at the latest after ``timeout`` seconds."""
        found: dict[str, Any] = {}

        def is_clean() -> bool:
            nonlocal found
            found = {node: difference(snap, self.snapshot(node)) for node, snap in before.items()}
            found = {node: parts for node, parts in found.items() if parts}
            return not found

        wait_until(is_clean, timeout, lambda: f"left behind: {json.dumps(found, indent=1)}")


def difference(before: Snapshot, after: Snapshot) -> dict[str, dict[str, list[str]]]:
    """What came and what went, by part; nothing when both are the same."""
    parts = {}
    old, new = asdict(before), asdict(after)
    for part, texts in old.items():
        came = [text for text in new[part] if text not in texts]
        went = [text for text in texts if text not in new[part]]
        if came or went:
            parts[part] = {"came": came, "went": went}
    return parts


def find_pids(testbed: Testbed, node: str, pattern: str) -> list[int]:
    """Processes of a node, by its own numbers, whose command line matches.

    A child that has not yet become another program is no process of its own: it is gone before anything is done to it.
    """
    text = testbed.root(["ps", "-eo", "pid=,ppid=,args="], node)
    rows = {int(pid): (int(ppid), args) for pid, ppid, args in (line.split(None, 2) for line in text.splitlines())}
    found = {pid: args for pid, (_, args) in rows.items() if re.search(pattern, args) and "ps -eo" not in args}
    return [pid for pid, args in found.items() if rows.get(rows[pid][0], (0, ""))[1] != args]


def end_processes(testbed: Testbed, node: str, pattern: str) -> None:
    """Ask these processes of a node to end, and wait until they have."""
    for pid in find_pids(testbed, node, pattern):
        testbed.root(f"kill {pid}; while kill -0 {pid} 2>/dev/null; do sleep 0.05; done", node)


def own_name(suffix: str = "") -> str:
    """A testbed's name that no other test process uses, and that tells who made it."""
    pid = os.getpid()
    return f"{_PREFIX}{pid}-{read_start_ticks(pid)}{suffix}"


def remove_stale() -> None:
    """Take down testbeds of test processes that were killed."""
    for name in find_names():
        fields = name.removeprefix(_PREFIX).split("-")
        if not name.startswith(_PREFIX) or len(fields) < 2 or not (fields[0] + fields[1]).isdigit():
            continue
        if read_start_ticks(int(fields[0])) != int(fields[1]):
            lifecycle.down(find_place(name))


def start_testbed(
    name: str, *, nodes: int = 3, daemon: bool = True, by_command: bool = False, release: str = OS
) -> Testbed:
    """Bring a testbed up; ``by_command`` as in ``Testbed``, ``release`` as ``TestbedSpec.os``."""
    said: list[str] = []
    lifecycle.up(find_place(name), TestbedSpec(name, nodes, daemon=daemon, os=release), said.append)
    return Testbed(name, by_command=by_command)
