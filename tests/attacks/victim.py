# SPDX-License-Identifier: Apache-2.0
"""Whom attacks are carried out against, and who carries them out: users of the testbed, with what users have."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from typing import Any

from tests.slurm.clusters import Cluster
from tests.slurm.testbed import Done, Testbed

OWNER, ATTACKER = "student", "mallory"
BARE = "bare"
_TEMPLATE = f"{BARE}: {{resource-set: nat, memory: 64M}}\n"


class Victim:
    """A cluster of ``OWNER``'s on n1 and n2."""

    def __init__(self, tb: Testbed, template: str, *options: str) -> None:
        self.tb, self.template, self.options = tb, template, options
        self.cluster: Cluster | None = None

    @property
    def job_id(self) -> int:
        assert self.cluster is not None
        return self.cluster.job_id

    @contextlib.contextmanager
    def running(self) -> Iterator[Victim]:
        """Its VMs run."""
        write_template(self.tb, OWNER)
        options = self.options or ("-N", "2")
        self.cluster = Cluster(self.tb, f"{self.template}:2", *options, size=("-c", "1"))
        try:
            self.cluster.wait_running()
            yield self
        finally:
            self.cluster.close()

    def find_control_port(self, node: str = "n1") -> tuple[str, int]:
        """Address and port of its supervisor on a node."""
        record = json.loads((self.tb.home(OWNER) / ".pvc/jobs" / str(self.job_id) / "cluster.json").read_text())
        (endpoint,) = [each for each in record["endpoints"] if each["node"] == node]
        return endpoint["host"], endpoint["port"]

    def pvc(self, *argv: str, check: bool = True) -> Done:
        """A command of the owner's on the login node, about this cluster."""
        return self.tb.run(["pvc", argv[0], "-j", str(self.job_id), *argv[1:]], check=check)


def write_template(tb: Testbed, user: str) -> None:
    """Give a user the template ``BARE``: a VM without a disk."""
    directory = tb.home(user) / ".pvc"
    directory.mkdir(exist_ok=True)
    path = directory / "templates.yaml"
    path.write_text(_TEMPLATE)
    tb.run(f"chown {user}: ~{user}/.pvc ~{user}/.pvc/templates.yaml", user="root")


def attack(tb: Testbed, script: str, *argv: str, node: str = "n1", timeout: float = 60.0) -> Done:
    """Run a Python program as the attacker on a node, with nothing but Python; its end is the caller's to judge."""
    command = ["/usr/bin/python3", "-I", "-", *argv]
    return tb.run(command, node=node, user=ATTACKER, stdin=script, check=False, timeout=timeout)


@contextlib.contextmanager
def attacking(tb: Testbed, script: str, *argv: str, node: str = "n1", user: str = ATTACKER) -> Iterator[Any]:
    """A Python program that attacks while the block runs, from its line "there" on; a Popen object of text streams.

    The program has to end with its standard input: what is killed here is the command that started it.
    """
    command = ["/usr/bin/python3", "-I", "-c", script, *argv]
    with tb.start(command, node=node, user=user, stdin=subprocess.PIPE) as process:
        try:
            first = process.stdout.readline()
            assert first == "there\n", first + process.stderr.read()
            yield process
        finally:
            process.kill()


def honest_argv(node: str = "n1") -> list[str]:
    """A whole cluster on a node, for whoever has the template."""
    return ["pvc", "alloc", "-c", "1", "-w", node, "-E", "true", BARE]


def allocs(tb: Testbed, user: str = "teacher", *, node: str = "n1") -> Done:
    """The honest twin beside an attack: a whole cluster of another user's on the attacked node."""
    write_template(tb, user)
    return tb.run(honest_argv(node), user=user, timeout=120)
