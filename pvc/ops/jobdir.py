"""The directory of one cluster in its owner's home, ``~/.pvc/jobs/JOB``: how commands find a cluster."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from pvc import codec
from pvc.errors import JobError
from pvc.files import ensure_private_dir, remove_tree, write_atomic
from pvc.model.cluster import ClusterKeys, ClusterRecord


def find_jobs_dir() -> Path:
    """The parent of all clusters' directories; the home is shared by login and compute nodes."""
    return Path.home() / ".pvc" / "jobs"


@dataclass(frozen=True)
class JobDir:
    """Paths of one cluster's files, and what is done with them."""

    path: Path

    @classmethod
    def of(cls, job_id: int) -> JobDir:
        """The directory of a job, whether it exists or not."""
        return cls(find_jobs_dir() / str(job_id))

    @property
    def record_path(self) -> Path:
        """The cluster's description for the other commands."""
        return self.path / "cluster.json"

    @property
    def tls_cert(self) -> Path:
        """Certificate of both sides of the control ports."""
        return self.path / "tls.pem"

    @property
    def tls_key(self) -> Path:
        """Its private key."""
        return self.path / "tls.key"

    @property
    def identity(self) -> Path:
        """The cluster's own ssh client key."""
        return self.path / "id_ed25519"

    @property
    def known_hosts(self) -> Path:
        """The guests' host key."""
        return self.path / "known_hosts"

    @property
    def log(self) -> Path:
        """What the launcher and the supervisors said."""
        return self.path / "launcher.log"

    def create(self) -> None:
        """Make it, empty: what an earlier job of the same number left is removed.

        :raise HostError: the place is taken by something else.
        """
        ensure_private_dir(self.path.parent.parent)
        ensure_private_dir(self.path.parent)
        remove_tree(self.path)
        ensure_private_dir(self.path)

    def write_keys(self, keys: ClusterKeys) -> None:
        """Store what ssh and the control client need."""
        texts = {
            self.tls_cert: keys.tls_cert,
            self.tls_key: keys.tls_key,
            self.identity: keys.ssh_key,
            self.identity.with_suffix(".pub"): f"{keys.ssh_key_pub}\n",
            self.known_hosts: f"vm* {' '.join(keys.host_key_pub.split()[:2])}\n",
        }
        for path, text in texts.items():
            write_atomic(path, text, mode=0o600)

    def write_record(self, record: ClusterRecord) -> None:
        """Publish the cluster; readers see all of it or nothing."""
        write_atomic(self.record_path, codec.dumps(record), mode=0o600)

    def read_record(self) -> ClusterRecord:
        """The cluster of this directory.

        :raise JobError: there is none, or its description is damaged.
        """
        try:
            return codec.loads(ClusterRecord, self.record_path.read_bytes())
        except FileNotFoundError:
            raise JobError(
                f"job {self.path.name} has no running cluster", hint="pvc ps lists yours; pvc start boots that of a job"
            ) from None
        except (ValueError, OSError) as err:
            raise JobError(f"cannot read {self.record_path}") from err

    def remove(self) -> None:
        """Remove it with all in it; absent is fine."""
        remove_tree(self.path)


def list_job_dirs() -> tuple[JobDir, ...]:
    """All directories, by job number."""
    try:
        names = [name for name in os.listdir(find_jobs_dir()) if name.isdigit()]
    except FileNotFoundError:
        return ()
    return tuple(JobDir(find_jobs_dir() / name) for name in sorted(names, key=int))
