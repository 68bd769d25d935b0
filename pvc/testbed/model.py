# SPDX-License-Identifier: Apache-2.0
"""What a testbed is made of, as frozen data: read facts, planned nodes, remembered processes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TestbedSpec:
    """What was asked for.

    ``plugin``: load spank/pvc.so; ``daemon``: keep pvc-node running on the nodes; ``os``: the Debian release whose
    programs the nodes run, "" for this machine's.
    """

    __test__ = False  # not a test class, whatever pytest thinks of its name

    name: str
    nodes: int = 3
    plugin: bool = True
    daemon: bool = True
    os: str = ""


@dataclass(frozen=True)
class CgroupMount:
    """One cgroup hierarchy of the host: ``options`` as mount(2) wants them ("" for the unified one)."""

    path: str
    version: int
    options: str


@dataclass(frozen=True)
class Reveal:
    """A directory that users may not pass (``closed``) and what they need below it (``needed``)."""

    closed: str
    needed: tuple[str, ...]


@dataclass(frozen=True)
class HostFacts:
    """What the plan needs to know of the machine; texts are the contents of the host's files.

    ``controllers``: those of the cgroup hierarchies that the nodes can have. ``root``: the directory that is the nodes'
    root in place of the machine's own; ``plugin``, ``python``, ``passwd`` and ``group`` are then the root's.
    """

    checkout: str
    python: str
    pvc: str | None
    pvc_node: str | None
    plugin: str | None
    cgroups: tuple[CgroupMount, ...]
    controllers: tuple[str, ...]
    has_daemon: bool
    reveals: tuple[Reveal, ...]
    passwd: str
    group: str
    config_files: tuple[tuple[str, str], ...]
    root: str | None = None


@dataclass(frozen=True)
class Tmpfs:
    """An empty file system of the node's own."""

    target: str
    mode: int = 0o755


@dataclass(frozen=True)
class Farm:
    """A host directory as seen by the node: links to the host's entries, except those in ``own``.

    Lets the node have files and directories (mount points) that the host has not, without writing to
    the host. The host's directory is visible, read-only, at ``aside``.
    """

    target: str
    aside: str
    own: tuple[str, ...]


@dataclass(frozen=True)
class Bind:
    """A file or directory of the host mounted on ``target``, which is made when absent."""

    source: str
    target: str
    read_only: bool = False


@dataclass(frozen=True)
class Directory:
    """A directory in a file system of the node's own."""

    path: str
    mode: int = 0o755
    user: str = "root"


@dataclass(frozen=True)
class Link:
    """A symbolic link in a file system of the node's own."""

    path: str
    target: str


@dataclass(frozen=True)
class Device:
    """A character device of the node's own, in place of the host's node ``target`` if there is one."""

    path: str
    target: str
    major: int
    minor: int
    mode: int


@dataclass(frozen=True)
class View:
    """Everything that the node's mount namespace changes, in the order in which it is applied.

    ``root``: a directory that becomes the node's root first; sources of ``binds`` are still this machine's.
    """

    tmpfs: tuple[Tmpfs, ...]
    farms: tuple[Farm, ...]
    binds: tuple[Bind, ...]
    directories: tuple[Directory, ...]
    links: tuple[Link, ...]
    devices: tuple[Device, ...] = ()
    root: str | None = None


@dataclass(frozen=True)
class Service:
    """A process that the node's init starts.

    ``after``: conditions to wait for first; ``ready``: the condition that says it serves. A condition is
    a path that exists ("/run/x.sock") or a TCP port that accepts ("10.99.0.1:6817"). ``restart``: start it
    again whenever it ends, as systemd's Restart=always.
    """

    name: str
    argv: tuple[str, ...]
    user: str = "root"
    after: tuple[str, ...] = ()
    ready: str | None = None
    restart: bool = False
    timeout_s: float = 120.0


@dataclass(frozen=True)
class NodePlan:
    """One node: all that its init needs.

    ``tunnel_address`` is that of its second link, which Open vSwitch has on a bridge.
    """

    testbed: str
    name: str
    address: str
    prefix_length: int
    mtu: int
    state_dir: str
    cgroups: tuple[CgroupMount, ...]
    view: View
    services: tuple[Service, ...]
    etcd_auth: bool = False
    tunnel_address: str | None = None


@dataclass(frozen=True)
class File:
    """A file of the testbed's state directory, before a node starts; ``path`` is relative."""

    path: str
    content: str
    mode: int = 0o644
    user: str = "root"


@dataclass(frozen=True)
class StateDir:
    """A directory of the testbed's state directory; ``path`` is relative."""

    path: str
    mode: int = 0o755
    user: str = "root"


@dataclass(frozen=True)
class TestbedPlan:
    """Everything that ``up`` makes."""

    __test__ = False

    spec: TestbedSpec
    directories: tuple[StateDir, ...]
    files: tuple[File, ...]
    nodes: tuple[NodePlan, ...]


@dataclass(frozen=True)
class Daemon:
    """A process that was started: its start time (clock ticks, /proc/PID/stat) tells it from a later one."""

    pid: int
    start_ticks: int


@dataclass(frozen=True)
class Record:
    """What the state directory remembers once everything runs."""

    spec: TestbedSpec
    nodes: tuple[str, ...]
