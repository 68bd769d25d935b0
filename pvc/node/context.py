"""What the root side works with: directories, configuration, state store, locks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pvc.config.load import load_root_config
from pvc.errors import HostError
from pvc.files import locked, read_text
from pvc.host import netns
from pvc.model.network import BridgedNetwork, EthernetNetwork, PciNetwork
from pvc.model.node import ImageCache
from pvc.model.site import SiteConfig
from pvc.node.apply import Hands
from pvc.plan.node import Site
from pvc.state.store import Store

_LOCK_TIMEOUT_S = 40.0


@dataclass
class Context:
    """One per process. The configuration is read again when a file changes."""

    conf_dir: Path = Path("/etc/pvc")
    state_dir: Path = Path("/var/lib/pvc")
    runtime_dir: Path = Path("/run/pvc")
    _config: SiteConfig | None = field(default=None, repr=False)
    _stamp: tuple[tuple[str, int], ...] = ()
    _store: Store | None = field(default=None, repr=False)

    def prepare(self) -> None:
        """Make the directories.

        :raise HostError: they cannot be made.
        """
        try:
            self.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.runtime_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
            (self.state_dir / "jobs").mkdir(mode=0o700, exist_ok=True)
            (self.runtime_dir / "locks").mkdir(mode=0o700, exist_ok=True)
            (self.runtime_dir / "net").mkdir(mode=0o755, exist_ok=True)
            self._lock_path("node").touch(mode=0o600)
        except OSError as err:
            raise HostError("cannot make pvc-node's directories") from err
        netns.ensure_directory()

    def config(self) -> SiteConfig:
        """The administrator's configuration.

        :raise ConfigError: it is wrong.
        """
        stamp = tuple(sorted((path.name, path.stat().st_mtime_ns) for path in self.conf_dir.glob("*.yaml")))
        if self._config is None or stamp != self._stamp:
            self._config = load_root_config(self.conf_dir)
            self._stamp = stamp
            self._drop_store()
        return self._config

    def site(self) -> Site:
        """The part of it that plans need.

        :raise ConfigError: it is wrong.
        """
        config = self.config()
        services = os.fspath(self.runtime_dir / "net")
        ethernets = {name: each for name, each in config.networks.items() if isinstance(each, EthernetNetwork)}
        bridged = {name: each for name, each in config.networks.items() if isinstance(each, BridgedNetwork)}
        devices = {name: each for name, each in config.networks.items() if isinstance(each, PciNetwork)}
        batch = config.batch
        cache = ImageCache(batch.image_cache_dir, batch.image_cache_size) if batch.image_cache_dir else None
        return Site(ethernets, config.resource_sets, batch.run_dir, services, bridged, devices, cache)

    def store(self) -> Store:
        """The state store, connected at first use.

        :raise ConfigError: the configuration is wrong.
        """
        settings = self.config().batch.etcd
        if self._store is None:
            from pvc.state.etcd import EtcdStore

            self._store = EtcdStore(settings)
        return self._store

    def hands(self) -> Hands:
        """For ``apply``."""
        return Hands(self.state_dir / "host.json", self.state_dir / "switch.json", self._lock_path("node"), self.store)

    @contextmanager
    def job_lock(self, job_id: int) -> Iterator[None]:
        """Nobody else sets up or tears down this job on this node meanwhile.

        :raise HostError: somebody else does, for too long.
        """
        self.prepare()
        with locked(self._lock_path(str(job_id)), timeout_s=_LOCK_TIMEOUT_S):
            yield

    @contextmanager
    def node_lock(self) -> Iterator[None]:
        """Nobody else hands out this node's numbers meanwhile.

        :raise HostError: somebody else does, for too long.
        """
        with locked(self._lock_path("node"), timeout_s=_LOCK_TIMEOUT_S):
            yield

    def forget_lock(self, job_id: int) -> None:
        """Remove a job's lock file, when the job is gone."""
        self._lock_path(str(job_id)).unlink(missing_ok=True)

    def _lock_path(self, name: str) -> Path:
        return self.runtime_dir / "locks" / name

    def _drop_store(self) -> None:
        if self._store is not None:
            self._store.close()
            self._store = None


def read_boot_id() -> str:
    """Names this boot of this node: PID 1 of a node that shares its kernel starts anew, too (proc(5))."""
    kernel = read_text(Path("/proc/sys/kernel/random/boot_id"), default="unknown")
    init = read_text(Path("/proc/1/stat"), default="").rpartition(")")[2].split()
    return f"{kernel}/{init[19] if len(init) > 19 else 0}"
