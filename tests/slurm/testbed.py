"""A testbed for tests: run commands in its nodes, cut their power, and compare nodes before and after."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pvc.testbed import lifecycle, processes
from pvc.testbed.model import TestbedSpec
from pvc.testbed.place import find_names, find_place

TOP = Path(__file__).resolve().parents[2]
_PREFIX = "pytest-"
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

    def __init__(self, name: str) -> None:
        self.name = name
        self.place = find_place(name)

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
        timeout: float = 60.0,
        stdin: str = "",
        env: Mapping[str, str] | None = None,
    ) -> Done:
        """Run a command (a text: with sh -c) in a node to its end."""
        words = ["sh", "-c", argv] if isinstance(argv, str) else list(argv)
        if env:
            words = ["env", *(f"{key}={value}" for key, value in env.items()), *words]
        done = subprocess.run(
            self.argv(words, node=node, user=user), input=stdin, capture_output=True, text=True, timeout=timeout
        )
        result = Done(tuple(words), done.returncode, done.stdout, done.stderr)
        assert not check or result.code == 0, f"{words} ended with {result.code}\n{result.out}\n{result.err}"
        return result

    def root(self, argv: Sequence[str] | str, node: str, *, check: bool = True, timeout: float = 60.0) -> str:
        """Run a command as root in a node and return its output."""
        return self.run(argv, node=node, user="root", check=check, timeout=timeout).out

    def nodes(self) -> list[str]:
        """The compute nodes."""
        record = self.place.read_record()
        assert record is not None
        return [node for node in record.nodes if node != "login"]

    def crash(self, node: str) -> None:
        """Cut a node's power."""
        lifecycle.crash(self.place, node)

    def boot(self, node: str, *, wait: bool = True) -> None:
        """Start a crashed node again; ``wait``: until Slurm calls it idle."""
        lifecycle.boot(self.place, node, wait=wait)

    def log(self, node: str, name: str) -> str:
        """A log of a node: "slurmd", "pvc-node", "slurm/slurmctld", "init" ..."""
        path = self.place.state_dir / "nodes" / node / "log" / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

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

    def wait_no_jobs(self, timeout: float = 60.0) -> None:
        """Wait until Slurm has no job left, those that are completing included."""
        wait_until(lambda: not self.jobs(), timeout, "jobs are left")

    def wait_idle(self, timeout: float = 60.0) -> None:
        """Wait until no node has a job, and none is out of service; "idle*" has not answered slurmctld for a moment."""
        wait_until(lambda: set(self.node_states().values()) == {"idle"}, timeout, "nodes are not idle")

    def snapshot(self, node: str) -> Snapshot:
        """What is on a node now."""
        script = (Path(__file__).parent / "snapshot.py").read_text()
        done = self.run(["/usr/bin/python3", "-I", "-"], node=node, user="root", stdin=script)
        return Snapshot(**json.loads(done.out))

    def assert_clean(self, before: Mapping[str, Snapshot], timeout: float = 60.0) -> None:
        """Every node is as it was in ``before``, at the latest after ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        while True:
            found = {node: difference(snap, self.snapshot(node)) for node, snap in before.items()}
            found = {node: parts for node, parts in found.items() if parts}
            if not found:
                return
            if time.monotonic() > deadline:
                raise AssertionError(f"left behind: {json.dumps(found, indent=1)}")
            time.sleep(0.2)


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


def wait_until(condition: Callable[[], object], timeout: float, what: str) -> None:
    """Poll a condition; AssertionError with ``what`` when it does not hold in time."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"{what} after {timeout:g} s"
        time.sleep(0.05)


def find_pids(testbed: Testbed, node: str, pattern: str) -> list[int]:
    """Processes of a node, by its own numbers, whose command line matches."""
    text = testbed.root(["ps", "-eo", "pid=,args="], node)
    rows = (line.split(None, 1) for line in text.splitlines())
    return [int(pid) for pid, args in rows if re.search(pattern, args) and "ps -eo" not in args]


def own_name(suffix: str = "") -> str:
    """A testbed's name that no other test process uses, and that tells who made it."""
    pid = os.getpid()
    return f"{_PREFIX}{pid}-{processes.read_start_ticks(pid)}{suffix}"


def remove_stale() -> None:
    """Take down testbeds of test processes that were killed."""
    for name in find_names():
        fields = name.removeprefix(_PREFIX).split("-")
        if not name.startswith(_PREFIX) or len(fields) < 2 or not (fields[0] + fields[1]).isdigit():
            continue
        if processes.read_start_ticks(int(fields[0])) != int(fields[1]):
            lifecycle.down(find_place(name))


def start_testbed(name: str, *, nodes: int = 3, daemon: bool = True) -> Testbed:
    """Bring a testbed up."""
    said: list[str] = []
    lifecycle.up(find_place(name), TestbedSpec(name, nodes, daemon=daemon), said.append)
    return Testbed(name)
