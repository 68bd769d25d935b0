# SPDX-License-Identifier: Apache-2.0
"""The site's configuration as the commands use it (batch.yaml and the rest), checked and complete."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pvc.errors import Problem
from pvc.model.drive import PersistentDrive
from pvc.model.network import EthernetNetwork, Network, ResourceSet
from pvc.model.vm import NO_HOOKS, Accel, Hooks, Mount


@dataclass(frozen=True)
class EtcdSettings:
    """How to reach etcd; the password file is readable by root only, so only pvc-node uses it."""

    servers: tuple[str, ...]
    port: int
    protocol: str
    auth_type: str  # password | none
    user: str
    password_file: str
    ca_cert: str | None
    prefix: str = "pvc"


@dataclass(frozen=True)
class BatchSettings:
    """batch.yaml."""

    etcd: EtcdSettings
    batch_args: tuple[str, ...]
    accel: Accel
    run_dir: str  # parent of the jobs' scratch directories on each node
    underlay_device: str | None  # None: the device that leads to the node's own name
    image_cache_dir: str | None = None  # parent of the users' copies of images on each node; None: there are none
    image_cache_size: int = 0  # of one user's, in bytes
    libvirt_hook: str | None = None  # a program on the nodes that may change the XML of libvirt's domains
    build_network: str = "user"  # of guests that build images: user | none
    metrics_address: str | None = None  # where pvc-node serves metrics: a path, or ADDRESS:PORT
    metrics_users: bool = False  # whether they name users


@dataclass(frozen=True)
class Repository:
    """An image repository; earlier in the list wins."""

    name: str
    path: str


@dataclass(frozen=True)
class KeyOrigin:
    """A key of a template: its value, the file:line that gave it ("": the default), the ancestor that it is from."""

    key: str
    value: Any
    source: str = ""
    template: str = ""


@dataclass(frozen=True)
class DiskWish:
    """One more disk of a VM: a copy of ``image``, or an empty one; ``size`` None: the image's."""

    image: str | None
    size: int | None
    bus: str = "virtio"
    cache: str = "unsafe"
    discard: bool = True
    iothread: bool = False
    aio: str = "threads"


@dataclass(frozen=True)
class Template:
    """templates.yaml after inheritance and expansion, before its image is looked up."""

    name: str
    image: str | None
    resource_set: str
    description: str = ""
    user_data: str | None = None
    instance_id: str | None = None
    kernel: str | None = None
    machine_type: str = "q35"
    cpu_model: str = "auto"
    nic_model: str = "virtio-net"
    disk_model: str = "virtio"
    disk_cache: str = "unsafe"
    disk_size: int | None = None
    disk_discard: bool = True
    disk_iothread: bool = True
    disk_aio: str = "threads"
    disks: tuple[DiskWish, ...] = ()
    persistent_drives: tuple[PersistentDrive, ...] = ()
    firmware: str = "bios"
    tpm: str = ""
    hugepages: str = ""
    mount_points: tuple[Mount, ...] = ()
    slurm_args: tuple[str, ...] = ()
    gres: tuple[str, ...] = ()
    cores: int | None = None
    memory: int | None = None  # of the guest, in MiB
    qemu_bin: str = "qemu-system-x86_64"
    custom_args: tuple[str, ...] = ()
    restart: str = "never"
    remote_display: str = "none"
    hypervisor: str = "qemu"
    hooks: Hooks = NO_HOOKS
    source: str = ""  # file:line that declared it; "image" for the template that an image is by itself
    origins: tuple[KeyOrigin, ...] = field(default=(), compare=False, repr=False)


@dataclass(frozen=True)
class SiteConfig:
    """Everything that was configured, with defaults filled in."""

    batch: BatchSettings
    networks: dict[str, Network]
    resource_sets: dict[str, ResourceSet]
    templates: dict[str, Template]
    repositories: tuple[Repository, ...]
    # What is right, and yet not as its author may think.
    warnings: tuple[Problem, ...] = field(default=(), compare=False)

    @property
    def ethernets(self) -> dict[str, EthernetNetwork]:
        """The private Ethernet networks."""
        return {name: each for name, each in self.networks.items() if isinstance(each, EthernetNetwork)}
