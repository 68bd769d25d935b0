# SPDX-License-Identifier: Apache-2.0
"""The directory of one cluster in its owner's home, ``~/.pvc/jobs/JOB``: how commands find a cluster."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pvc.codec import OtherVersionError
from pvc.errors import HostError, JobError
from pvc.files import ensure_own_dir, ensure_private_dir, remove_tree, write_atomic
from pvc.model.cluster import CLUSTER, ClusterKeys, ClusterRecord

LOG = logging.getLogger(__name__)
# More than the keys and the description of most clusters.
_TRIAL_BYTES = 64 << 10


def find_jobs_dir() -> Path:
    """The parent of all clusters' directories; the home is shared by login and compute nodes.

    :raise HostError: this user has no home.
    """
    try:
        return Path.home() / ".pvc" / "jobs"
    except RuntimeError:
        raise HostError(f"nobody says where the home of uid {os.getuid()} is", hint="set HOME to it") from None


def ensure_jobs_dir() -> Path:
    """The parent of all clusters' directories, made where it is missing. Links of the user's own are followed.

    :raise HostError: it cannot be made, or is somebody else's.
    """
    place = find_jobs_dir()
    hint = f"clusters are kept in $HOME, which is {os.environ.get('HOME', '')!r}, and compute nodes must see it, too"
    if not place.is_absolute():
        raise HostError(f"{place} is no place for clusters: the path is not absolute", hint=hint)
    try:
        ensure_own_dir(place.parent)
        ensure_own_dir(place)
    except HostError as err:
        raise HostError(f"{place} is no place for clusters: {err}", hint=hint) from None
    except OSError as err:
        raise HostError(f"{place} is no place for clusters: {err.strerror}", hint=_advise(err) or hint) from None
    return place


def check_jobs_dir() -> None:
    """Whether a cluster's directory can be made and filled, once there is a job.

    :raise HostError: it cannot.
    """
    place = ensure_jobs_dir()
    try:
        with tempfile.TemporaryDirectory(dir=place, prefix=".try-") as trial, open(f"{trial}/keys", "wb") as stream:
            stream.write(bytes(_TRIAL_BYTES))
            # A quota, or a full server of NFS, may be told as late as this.
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as err:
        hint = f"clusters are kept in $HOME, which is {os.environ.get('HOME', '')!r}, and {place} must be writable"
        raise HostError(f"{place} is no place for clusters: {err.strerror}", hint=_advise(err) or hint) from None


def _advise(err: OSError) -> str | None:
    """What to do about it, where the error tells."""
    if err.errno in (errno.ENOSPC, errno.EDQUOT):
        return "free some space in your home, or let ~/.pvc be a link to a directory with more, which all nodes see"
    if err.errno == errno.EROFS:
        return "let ~/.pvc be a link to a directory of yours that can be written and that all nodes see"
    return None


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
    def ssh_config(self) -> Path:
        """Settings for plain ssh, where pvc ssh-config wrote them."""
        return self.path / "ssh_config"

    @property
    def log(self) -> Path:
        """What the launcher and the supervisors said."""
        return self.path / "launcher.log"

    @property
    def cluster_name_path(self) -> Path:
        """Which Slurm cluster the job is of: a home may be shared by several."""
        return self.path / "slurm-cluster"

    def create(self, slurm_cluster: str | None = None) -> int:
        """Make it, empty; what a killed launcher of an earlier start left is removed.

        :return: a descriptor that claims the directory until it is closed, as the kernel does at the end of
            the launcher.
        :raise JobError: another launcher has claimed it.
        :raise HostError: the place is taken by something else.
        """
        ensure_jobs_dir()
        if self.is_claimed():
            raise JobError(
                f"a cluster runs already in job {self.path.name}", hint="pvc status shows it, pvc stop ends it"
            )
        try:
            remove_tree(self.path)
            ensure_private_dir(self.path)
            if slurm_cluster:
                write_atomic(self.cluster_name_path, slurm_cluster, mode=0o600)
            claim = os.open(self._claim_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as err:
            hint = f"what an earlier start left there has to go: rm -rf {self.path}"
            raise HostError(f"cannot make {self.path}", hint=_advise(err) or hint) from err
        with suppress(OSError):  # ENOLCK: a file system without locks
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return claim

    @property
    def _claim_path(self) -> Path:
        return self.path / "launcher.lock"

    def is_claimed(self) -> bool:
        """Whether its launcher lives, as far as locks reach: on another node a file system may not show it."""
        try:
            fd = os.open(self._claim_path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        finally:
            os.close(fd)
        return False

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
        write_atomic(self.record_path, CLUSTER.dumps(record), mode=0o600)

    def read_record(self) -> ClusterRecord:
        """The cluster of this directory.

        :raise JobError: there is none, or its description is damaged.
        """
        try:
            return CLUSTER.loads(ClusterRecord, self.record_path.read_bytes())
        except FileNotFoundError:
            raise JobError(
                f"job {self.path.name} has no running cluster", hint="pvc ps lists yours; pvc start boots that of a job"
            ) from None
        except OtherVersionError as err:
            raise JobError(
                f"cannot read {self.record_path}",
                hint="the cluster runs with another version of pvc: use that one for it, or end it by scancel",
            ) from err
        except (ValueError, OSError) as err:
            raise JobError(f"cannot read {self.record_path}") from err

    def remove(self) -> bool:
        """Remove it with all in it, absent is fine; what cannot be is told and left, and the answer is False."""
        try:
            remove_tree(self.path)
        except OSError as err:
            LOG.warning("cannot remove %s, where job %s had its cluster: %s", self.path, self.path.name, err.strerror)
            return False
        return True

    def give_up(self, claim: int) -> None:
        """Remove it, and its claim with it; another launcher's turn begins behind that.

        The lock's file goes last, and from outside of it: a file system over the network keeps what is open in its
        directory, which would stay with it.
        """
        aside = self.path.with_name(f".{self.path.name}.lock")
        with suppress(OSError):
            self._claim_path.rename(aside)
        self.remove()
        with suppress(OSError):
            aside.unlink()
        os.close(claim)


def list_job_dirs() -> tuple[JobDir, ...]:
    """All directories, by job number.

    :raise HostError: nobody can tell.
    """
    try:
        names = [name for name in os.listdir(find_jobs_dir()) if name.isdecimal()]
    except FileNotFoundError:
        return ()
    except OSError as err:
        raise HostError(
            f"cannot read {find_jobs_dir()}", hint="your clusters are kept there: it must be yours"
        ) from err
    return tuple(JobDir(find_jobs_dir() / name) for name in sorted(names, key=int))
