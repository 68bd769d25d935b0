# SPDX-License-Identifier: Apache-2.0
"""Running clusters for tests: pvc alloc with a script that sleeps."""

from __future__ import annotations

import contextlib
import json
import subprocess
from typing import Any

from tests.slurm.testbed import Testbed
from tests.waits import PATIENCE_S, wait_until

SCRIPT = "#!/bin/sh\ntouch started\nexec sleep 1800\n"


def list_clusters(tb: Testbed) -> list[dict[str, Any]]:
    """What pvc ps tells the student."""
    found: list[dict[str, Any]] = json.loads(tb.run(["pvc", "ps", "--json"]).out)
    return found


class Cluster:
    """A running pvc alloc whose script sleeps; end it, whatever happens."""

    def __init__(
        self, tb: Testbed, definition: str, *options: str, user: str = "student", size: tuple[str, ...] = ("-c", "2")
    ) -> None:
        self.tb, self.user = tb, user
        home = tb.home(user)
        script = home / "sleeper.sh"
        script.write_text(SCRIPT)
        script.chmod(0o755)
        self.started = home / "started"
        self.started.unlink(missing_ok=True)
        argv = ["pvc", "alloc", *size, *options, "-E", "./sleeper.sh", definition]
        self.process = tb.start(argv, user=user, stderr=subprocess.STDOUT)
        self.job_id = 0

    def wait_running(self) -> Cluster:
        """Until the script runs, which is when every QEMU does."""

        def check() -> bool:
            code = self.process.poll()
            assert code is None, f"pvc alloc ended with {code}: {self.process.stdout.read()}"
            return self.started.exists()

        wait_until(check, 300, "the script has not started")
        rows = self.tb.run(["squeue", "-h", "-u", self.user, "-t", "R", "-o", "%A"], user=self.user).out.split()
        self.job_id = min(map(int, rows))  # the leader of a heterogeneous job
        return self

    def wait_reachable(self) -> Cluster:
        """Until every VM answers."""
        self.tb.run(["pvc", "wait", "--timeout", "300s", "-j", str(self.job_id)], user=self.user, timeout=360)
        return self

    def end(self, timeout: float = PATIENCE_S) -> str:
        """What it printed, once it has ended."""
        out, _ = self.process.communicate(timeout=timeout)
        return str(out)

    def close(self) -> None:
        """End it by force."""
        if self.job_id:
            self.tb.run(["scancel", str(self.job_id)], user=self.user, check=False)
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.communicate(timeout=PATIENCE_S)
