# SPDX-License-Identifier: Apache-2.0
"""What the root side works with: directories, configuration, state store, locks."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pvc import log
from pvc.errors import HostError, JobError
from pvc.files import locked, read_text
from pvc.host import netns
from pvc.host.processes import read_start_ticks
from pvc.model.network import BridgedNetwork, PciNetwork
from pvc.model.node import ImageCache
from pvc.model.nodeview import ConfigState, Drain
from pvc.model.site import SiteConfig
from pvc.node.apply import Hands
from pvc.node.configuration import Configuration
from pvc.node.metrics import Metrics
from pvc.plan.node import Site
from pvc.slurm.nodenames import find_node_name
from pvc.state.drain import OutOfServiceError, read_drain
from pvc.state.ledger import Ledger, Record
from pvc.state.store import Store

LOG = logging.getLogger(__name__)
_LOCK_TIMEOUT_S = 40.0


@dataclass
class Context:
    """One per process. The configuration is read once, and again when root asks for it."""

    conf_dir: Path = Path("/etc/pvc")
    state_dir: Path = Path("/var/lib/pvc")
    runtime_dir: Path = Path("/run/pvc")
    # A job was undone whose ledger did not say all: the store may still count this node to its cluster.
    forgetful: bool = False
    metrics: Metrics = field(default_factory=Metrics, repr=False)
    _store: Store | None = field(default=None, repr=False)
    _store_lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    # In a tuple when it is known: each set-up asks, and only an order of root's changes it.
    _drain: tuple[Drain | None] | None = field(default=None, repr=False)
    _told: dict[int, set[str]] = field(default_factory=dict, repr=False)
    _configuration: Configuration = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._configuration = Configuration(self.conf_dir)

    def prepare(self) -> None:
        """Make the directories.

        :raise HostError: they cannot be made.
        """
        try:
            self.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.runtime_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
            (self.state_dir / "jobs").mkdir(mode=0o700, exist_ok=True)
            (self.runtime_dir / "locks").mkdir(mode=0o700, exist_ok=True)
            (self.runtime_dir / "jobs").mkdir(mode=0o700, exist_ok=True)
            (self.runtime_dir / "net").mkdir(mode=0o711, exist_ok=True)
            (self.runtime_dir / "net").chmod(0o711)  # earlier versions let everybody list it
            self._lock_path("node").touch(mode=0o600)
        except OSError as err:
            raise HostError("cannot make pvc-node's directories") from err
        netns.ensure_directory()

    def config(self) -> SiteConfig:
        """The administrator's configuration.

        :raise ConfigError: it is wrong.
        """
        return self._configuration.get()

    def reload(self) -> None:
        """Take the configuration as the files have it now.

        :raise ConfigError: it is wrong; what was in force stays.
        """
        self._configuration.reload()
        with self._store_lock:
            # Whoever is asking the old one has its answer first; the next one connects as the files say.
            store, self._store = self._store, None
        if store is not None:
            store.close()

    def config_state(self) -> ConfigState:
        """What became of the configuration."""
        return self._configuration.state()

    def site(self) -> Site:
        """The part of it that plans need.

        :raise ConfigError: it is wrong.
        """
        config = self.config()
        services = os.fspath(self.runtime_dir / "net")
        bridged = {name: each for name, each in config.networks.items() if isinstance(each, BridgedNetwork)}
        devices = {name: each for name, each in config.networks.items() if isinstance(each, PciNetwork)}
        batch = config.batch
        cache = ImageCache(batch.image_cache_dir, batch.image_cache_size) if batch.image_cache_dir else None
        return Site(config.ethernets, config.resource_sets, batch.run_dir, services, bridged, devices, cache)

    def heed_drain(self) -> Drain | None:
        """Read again whether this node takes new clusters; why not."""
        found = read_drain(self.state_dir)
        self._drain = (found,)
        return found

    def find_drain(self) -> Drain | None:
        """Why this node takes no new clusters, as far as this process was told."""
        return self._drain[0] if self._drain is not None else self.heed_drain()

    def check_service(self, node: str) -> None:
        """Let no new cluster begin on a node that an administrator has taken out of service.

        :raise OutOfServiceError: this one is.
        """
        drain = self.find_drain()
        if drain is not None:
            raise OutOfServiceError(
                f"{node} is out of service for virtual clusters: {drain.reason}",
                hint=f"ask for other nodes (--exclude={node}), or the administrator when it is back",
            )

    def store(self) -> Store:
        """The state store, connected at first use.

        :raise ConfigError: the configuration is wrong.
        """
        with self._store_lock:
            if self._store is None:
                from pvc.state.etcd import EtcdStore

                self._store = EtcdStore(self.config().batch.etcd)
            return self._store

    def hands(self) -> Hands:
        """For ``apply``."""
        return Hands(self.state_dir / "host.json", self.state_dir / "switch.json", self._lock_path("node"), self.store)

    def read_record(self, job_id: int) -> Record | None:
        """What is recorded of a job; a refusal that the state directory had no room for is in the other one."""
        return Ledger(self.runtime_dir, job_id).read_record() or Ledger(self.state_dir, job_id).read_record()

    @contextmanager
    def job_lock(self, job_id: int) -> Iterator[None]:
        """Nobody else sets up or tears down this job on this node meanwhile.

        :raise HostError: somebody else does, for too long.
        """
        self.prepare()
        lock = self._lock_path(str(job_id))
        with locked(lock, timeout_s=_LOCK_TIMEOUT_S), log.context("", PVC_JOB=str(job_id)):
            yield

    @contextmanager
    def node_lock(self) -> Iterator[None]:
        """Nobody else hands out this node's numbers meanwhile.

        :raise HostError: somebody else does, for too long.
        """
        with locked(self._lock_path("node"), timeout_s=_LOCK_TIMEOUT_S):
            yield

    def tell(self, job_id: int, text: str) -> None:
        """Warn in the log, once for each job: things are looked at again and again."""
        told = self._told.setdefault(job_id, set())
        if text not in told:
            told.add(text)
            with log.context("", PVC_JOB=str(job_id)):
                LOG.warning("job %d: %s", job_id, text)

    def forget_lock(self, job_id: int) -> None:
        """Remove a job's lock file, when the job is gone."""
        self._told.pop(job_id, None)
        self._lock_path(str(job_id)).unlink(missing_ok=True)

    def _lock_path(self, name: str) -> Path:
        return self.runtime_dir / "locks" / name


class NodeName:
    """What Slurm calls this node: as the administrator says, else as slurm.conf has it for this host (NodeHostname)."""

    def __init__(self, given: str | None) -> None:
        self._known = given

    def read(self) -> str:
        """The name; while Slurm's configuration cannot be read, it is the host's, and Slurm is asked again."""
        host = os.uname().nodename.partition(".")[0]
        if self._known is None:
            try:
                self._known = find_node_name(host)
            except JobError as err:
                LOG.debug("%s", err)
        return self._known or host


def read_boot_id() -> str:
    """Names this boot of this node: PID 1 of a node that shares its kernel starts anew, too (proc(5))."""
    kernel = read_text(Path("/proc/sys/kernel/random/boot_id"), default="unknown")
    return f"{kernel}/{read_start_ticks(1) or 0}"
