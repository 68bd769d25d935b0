# SPDX-License-Identifier: Apache-2.0
"""The configuration that is in force in this process, until root asks for another one.

Files are read at first use and at a reload, not when they change: what an administrator is in the middle of editing
has no effect, and files that go together come into force together.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from pvc.config.lines import add_lines
from pvc.config.load import load_root_config
from pvc.errors import ConfigError, Problem
from pvc.model.network import BridgedNetwork, EthernetNetwork, Network
from pvc.model.nodeview import ConfigState
from pvc.model.site import SiteConfig

LOG = logging.getLogger(__name__)
_HINT = "what was in force stays in force; correct the files, then pvc-node reload"


@dataclass
class Configuration:
    """Of one directory; may be asked by all threads."""

    conf_dir: Path
    _config: SiteConfig | None = field(default=None, repr=False)
    _stamp: tuple[tuple[str, int], ...] = ()
    _state: ConfigState = field(default_factory=ConfigState)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def get(self) -> SiteConfig:
        """What is in force; where nothing is, the files are looked at again.

        :raise ConfigError: it is wrong.
        """
        return self._config or self._read_first()

    def _read_first(self) -> SiteConfig:
        with self._lock:
            stamp = self._read_stamp()
            found = self._config or load_root_config(self.conf_dir)
            if self._config is None:
                self._take(found, (), stamp)
            return found

    def reload(self) -> None:
        """Take the files as they are now; all of them, or none.

        What devices, directories and keys of the store are found by keeps its value: a cluster may begin any moment,
        here or on a node that shares the store.

        :raise ConfigError: they are wrong; what was in force stays.
        """
        with self._lock:
            try:
                stamp = self._read_stamp()
                found = load_root_config(self.conf_dir)
                kept = list(_find_kept(self._config, found)) if self._config is not None else []
                if self._config is not None:
                    found = _keep(self._config, found)
                    _check_prefixes(found, self.conf_dir)
            except ConfigError as err:
                self._state = replace(self._state, refusal=str(err), refused_at=time.time())
                LOG.error("the configuration is wrong, what was in force stays in force: %s", err)
                raise ConfigError(err.problems, hint=_HINT) from None
            if kept:
                kept = list(add_lines(ConfigError(kept), self.conf_dir).problems)
            self._take(found, tuple(map(str, kept)), stamp)
            for problem in kept:
                LOG.warning("%s", problem)
            LOG.info("the configuration was read again")

    def state(self) -> ConfigState:
        """What became of it."""
        with self._lock:
            return replace(self._state, changed=self._config is not None and self._read_stamp() != self._stamp)

    def _take(self, config: SiteConfig, kept: tuple[str, ...], stamp: tuple[tuple[str, int], ...]) -> None:
        self._config, self._stamp = config, stamp
        self._state = ConfigState(read_at=time.time(), kept=kept)

    def _read_stamp(self) -> tuple[tuple[str, int], ...]:
        found = []
        for path in self.conf_dir.glob("*.yaml"):
            try:
                found.append((path.name, path.stat().st_mtime_ns))
            except OSError:
                found.append((path.name, 0))  # a link to nothing, or gone meanwhile: reading tells
        return tuple(sorted(found))


def _prefix(network: Network | None) -> tuple[str, str] | None:
    """The key by whose value a network's devices are known on a node, and the value."""
    match network:
        case EthernetNetwork():
            return "dev-prefix", network.dev_prefix
        case BridgedNetwork():
            return "tap-prefix", network.tap_prefix
    return None


def _find_kept(old: SiteConfig, new: SiteConfig) -> Iterator[Problem]:
    """What differs and does not change under running clusters; the listener for metrics is opened at the start."""

    def differ(file: str, key: str, was: str, is_now: str) -> Iterator[Problem]:
        if was != is_now:
            text = f"{is_now!r} counts when pvc-node starts again; until then it is {was!r}"
            yield Problem(file, 0, key, text)

    yield from differ("batch.yaml", "settings.etcd-prefix", old.batch.etcd.prefix, new.batch.etcd.prefix)
    yield from differ("batch.yaml", "settings.run-dir", old.batch.run_dir, new.batch.run_dir)
    metrics = old.batch.metrics_address or "", new.batch.metrics_address or ""
    yield from differ("batch.yaml", "settings.metrics-address", *metrics)
    for name, network in new.networks.items():
        was, now = _prefix(old.networks.get(name)), _prefix(network)
        if was is not None and now is not None and was[0] == now[0]:
            yield from differ("networks.yaml", f"{name}.settings.{now[0]}", was[1], now[1])


def _keep(old: SiteConfig, new: SiteConfig) -> SiteConfig:
    """The new one with the old values of ``_find_kept``."""
    networks: dict[str, Network] = {}
    for name, network in new.networks.items():
        before = old.networks.get(name)
        match network, before:
            case EthernetNetwork(), EthernetNetwork():
                networks[name] = replace(network, dev_prefix=before.dev_prefix)
            case BridgedNetwork(), BridgedNetwork():
                networks[name] = replace(network, tap_prefix=before.tap_prefix)
            case _:
                networks[name] = network
    etcd = replace(new.batch.etcd, prefix=old.batch.etcd.prefix)
    batch = replace(new.batch, etcd=etcd, run_dir=old.batch.run_dir, metrics_address=old.batch.metrics_address)
    return replace(new, batch=batch, networks=networks)


def _check_prefixes(config: SiteConfig, conf_dir: Path) -> None:
    """A prefix that a network keeps may be what the files give to another one.

    :raise ConfigError: devices of a bridged network would not be told apart from another's.
    """
    first: dict[str, str] = {}
    problems = []
    for name, network in config.networks.items():
        own = _prefix(network)
        if own is None:
            continue
        other = first.setdefault(own[1], name)
        if other != name and BridgedNetwork in (type(network), type(config.networks[other])):
            text = f"{own[1]!r} is that of network {other!r} until pvc-node starts again"
            problems.append(Problem("networks.yaml", 0, f"{name}.settings.{own[0]}", text))
    if problems:
        raise add_lines(ConfigError(problems), conf_dir)
