# SPDX-License-Identifier: Apache-2.0
"""What root is shown of a node, and of a site: whose clusters there are, what they hold, and what is left over."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from pvc.model.netview import Upkeep


class JobPhase(StrEnum):
    """How far a job is on a node."""

    READY = "ready"
    REFUSED = "refused"
    UNFINISHED = "unfinished"  # being set up or torn down, or left so
    UNREADABLE = "unreadable"
    NOBODYS = "nobody's"  # there is something of it, and no record


@dataclass(frozen=True)
class NodeJob:
    """A job on this node. ``known``: whether Slurm has it here; None: Slurm did not answer."""

    job_id: int
    phase: JobPhase
    known: bool | None
    uid: int | None = None
    user: str = ""
    since: float | None = None  # seconds since the epoch
    vms: int = 0
    vnis: tuple[int, ...] = ()
    ports: tuple[int, ...] = ()
    devices: tuple[str, ...] = ()
    text: str = ""  # why it is refused, what is left of it
    upkeep: Upkeep = field(default_factory=Upkeep)

    @property
    def is_left_over(self) -> bool:
        """Whether it is here, and no job of Slurm's is."""
        return self.known is False


@dataclass(frozen=True)
class Share:
    """Of something that a node has so much of: what is used."""

    what: str
    used: int
    of: int
    unit: str = ""


@dataclass(frozen=True)
class Drain:
    """Why an administrator lets no new cluster be set up on a node, and since when (seconds since the epoch)."""

    reason: str
    since: float


@dataclass(frozen=True)
class ConfigState:
    """What became of the configuration in a process; times are seconds since the epoch.

    ``read_at`` None: none is in force. ``kept``: what of the files counts only after a restart. ``refusal``: what was
    wrong at the last reload, since when what had been in force has stayed so. ``changed``: files are not as they were.
    """

    read_at: float | None = None
    kept: tuple[str, ...] = ()
    refusal: str = ""
    refused_at: float | None = None
    changed: bool = False


@dataclass(frozen=True)
class DaemonState:
    """What the pvc-node that serves a node says of itself."""

    version: str
    pid: int
    configuration: ConfigState = field(default_factory=ConfigState)


@dataclass(frozen=True)
class Versions:
    """What runs together on a node. ``daemon`` "": none serves; ``plugins``: of each pvc.so by its path, "" where it
    does not tell. ``problems``: why some of this is not known.
    """

    pvc: str
    daemon: str
    records: str
    plugins: dict[str, str]
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class NodeView:
    """A node. ``daemon`` None: none serves. ``problems``: why some of this is not known."""

    node: str
    daemon: DaemonState | None
    drain: Drain | None
    jobs: tuple[NodeJob, ...]
    shares: tuple[Share, ...]
    unswept: bool  # directories of ended jobs are still to be removed
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class SiteCluster:
    """A cluster that the state store has. ``state`` is Slurm's word; empty: Slurm has no such job."""

    job_id: int
    nodes: tuple[str, ...]
    vnis: tuple[int, ...]
    user: str = ""
    state: str = ""
    elapsed: str = ""
