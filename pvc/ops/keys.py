# SPDX-License-Identifier: Apache-2.0
"""The secrets of one cluster: a TLS pair, a client key and the guests' host key.

Three programs make them at the same time; nothing else of a cluster's start needs a process beside srun.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from pvc import run
from pvc.errors import HostError
from pvc.files import remove_tree
from pvc.model.cluster import ClusterKeys

_TIMEOUT_S = 20.0


class KeyMaker:
    """Starts the programs when made; ``finish`` waits for them."""

    def __init__(self, scratch: Path, comment: str) -> None:
        """``scratch``: a private directory of the user; what is made there is gone after ``finish``.

        :raise HostError: openssl or ssh-keygen is missing.
        """
        self._dir = Path(tempfile.mkdtemp(dir=scratch, prefix=".keys-"))
        environment = {**run.BASE_ENV, "HOME": os.environ.get("HOME", "/")}
        try:
            self._processes = [
                run.spawn(argv, env=environment, cwd=self._dir, stdout=run.DEVNULL, stderr=run.PIPE)
                for argv in (_tls_argv(comment), _ssh_argv("client", comment), _ssh_argv("host", comment))
            ]
        except HostError as err:
            remove_tree(self._dir)
            raise HostError("cannot make the cluster's keys", hint="apt install openssl openssh-client") from err

    def finish(self) -> ClusterKeys:
        """The keys.

        :raise HostError: a program failed; its message is in the error.
        """
        try:
            for process in self._processes:
                _, stderr = process.communicate(timeout=_TIMEOUT_S)
                if process.returncode != 0:
                    raise HostError(f"cannot make the cluster's keys: {stderr.decode(errors='replace').strip()}")
            read = {name: (self._dir / name).read_text() for name in _FILES}
            return ClusterKeys(
                tls_cert=read["tls.pem"],
                tls_key=read["tls.key"],
                ssh_key=read["client"],
                ssh_key_pub=read["client.pub"].strip(),
                host_key=read["host"],
                host_key_pub=read["host.pub"].strip(),
            )
        except run.TimeoutExpired as err:
            raise HostError("cannot make the cluster's keys: no end in time") from err
        finally:
            self.abandon()

    def abandon(self) -> None:
        """End what still runs and remove the scratch files."""
        for process in self._processes:
            if process.poll() is None:
                process.kill()
                process.wait()
        remove_tree(self._dir)


_FILES = ("tls.pem", "tls.key", "client", "client.pub", "host", "host.pub")


def _tls_argv(comment: str) -> list[str]:
    # ten years: the cluster ends long before; peers do not compare clocks (see pvc.ops.control)
    words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    return [*words, "-days", "3650", "-subj", f"/CN={comment}", "-keyout", "tls.key", "-out", "tls.pem"]


def _ssh_argv(name: str, comment: str) -> list[str]:
    return ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", name]
