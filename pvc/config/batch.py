# SPDX-License-Identifier: Apache-2.0
"""batch.yaml: how pvc reaches Slurm and etcd, and what the nodes use."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path, PurePosixPath
from typing import Any

from pvc.config import setting
from pvc.config.disks import SIZE
from pvc.config.setting import Scope, Setting, Table
from pvc.config.yamlmarks import Document
from pvc.model.site import BatchSettings, EtcdSettings
from pvc.model.vm import Accel

_HOST = setting.word(
    "host", r"[A-Za-z0-9][A-Za-z0-9._-]*|\[[0-9A-Fa-f:.]+\]", "a host name or an address, without port"
)
_LONGEST_SOCKET = 107  # unix(7)
_DEVICE = setting.word("device", r"[^\s/]{1,15}", "a network device's name")


def parse_absolute(text: str) -> str:
    """An absolute path that does not go up.

    :raise ValueError: it is relative, or contains "..".
    """
    if not PurePosixPath(text).is_absolute() or ".." in PurePosixPath(text).parts or "\0" in text:
        raise ValueError(f"{text!r} is not an absolute path")
    return text


def parse_listener(text: str) -> str:
    """A path for a Unix socket, or ADDRESS:PORT with an IPv4 address, or an IPv6 one in brackets.

    :raise ValueError: it is neither.
    """
    if text.startswith("/"):
        if len(text.encode()) > _LONGEST_SOCKET:
            raise ValueError(f"a socket's path has {_LONGEST_SOCKET} bytes at most")
        return parse_absolute(text)
    host, _, port = text.rpartition(":")
    address = ip_address(host[1:-1] if host.startswith("[") and host.endswith("]") else host)
    if (address.version == 6) != host.startswith("[") or not port.isascii() or not port.isdecimal():
        raise ValueError(f"{text!r} is no ADDRESS:PORT")
    if not 0 < int(port) < 65536:
        raise ValueError(f"{port} is no port")
    return text


ABSOLUTE_PATH = setting.text(parse_absolute, name="path", expected="an absolute path")

SETTINGS = Table(
    settings=(
        Setting(
            "etcd-servers",
            setting.list_of(_HOST, minimum=1),
            "Members of the etcd cluster. They are tried in this order.",
            required=True,
        ),
        Setting(
            "etcd-client-port", setting.integer(1, 65535), "The TCP port on which they serve clients.", default=2379
        ),
        Setting(
            "etcd-protocol",
            setting.choice("http", "https"),
            "``https`` encrypts and checks the servers' certificates; with ``http`` the password crosses the network "
            "in clear.",
            default="http",
        ),
        Setting("etcd-ca-cert", ABSOLUTE_PATH, "PEM file with the authority behind the servers' certificates."),
        Setting(
            "etcd-auth-type",
            setting.choice("password", "none"),
            "``password``: *pvc-node* gives etcd the user ``etcd-user`` and the password in ``etcd-password-file``.",
            default="password",
        ),
        Setting(
            "etcd-user",
            setting.word("name", r"[A-Za-z0-9_.-]+", "a user name"),
            "The etcd user. It needs read and write permission on keys below ``etcd-prefix``.",
            default="root",
        ),
        Setting(
            "etcd-password-file",
            ABSOLUTE_PATH,
            "File that holds the password. Only root may read it; the users of the cluster never need it.",
            default_text="``etcd-password`` beside batch.yaml",
        ),
        Setting(
            "etcd-prefix",
            setting.word("prefix", r"[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*", "names with / between them"),
            "What all of pvc's keys in etcd begin with, after a ``/``. Sites that share an etcd need one each, the "
            "same on all nodes of a site. Change it only while no cluster runs.",
            default="pvc",
        ),
        Setting(
            "batch-args",
            setting.list_of(setting.text()),
            "Options that are put in front of those of every *salloc* and *sbatch* that pvc runs.",
            default=[],
        ),
        Setting(
            "accel",
            setting.choice("auto", "kvm", "tcg", parse=Accel),
            "How QEMU runs guests. ``auto`` is KVM where a probe guest really ran, else TCG (software emulation).",
            default="auto",
        ),
        Setting(
            "run-dir",
            ABSOLUTE_PATH,
            "Where each node keeps the overlays, seeds and sockets of its VMs, in one directory a job that only the "
            "job's owner may enter. A local file system with room for what the guests write. Nobody but root may "
            "write to it or to a directory above it, except in sticky ones as /var/tmp; else set-ups are refused.",
            default="/var/tmp/pvc",
        ),
        Setting(
            "libvirt-hook",
            ABSOLUTE_PATH,
            "A program on the nodes that may change VMs with *hypervisor: libvirt*: it reads a domain's XML and prints "
            "the XML to use. It runs as the job's owner; see *Through libvirt* in pvc-templates.yaml(5).",
        ),
        Setting(
            "build-network",
            setting.choice("user", "none"),
            "What guests of *pvc image build* reach: ``user``, all that the user who builds reaches from that machine "
            "(QEMU's user network, no rights needed), or ``none``.",
            default="user",
        ),
        Setting(
            "image-cache-dir",
            ABSOLUTE_PATH,
            "Where each node keeps copies of the images that its VMs start from, so that the next ones read its own "
            "disk and not the file server. Each user has a directory of their own in it. It must be on a local file "
            "system, and only root may be able to write to it.",
            default_text="images are read where they are",
        ),
        Setting(
            "image-cache-size",
            SIZE,
            "The most that one user's copies may take. What was used longest ago goes first, and nothing that is in "
            "use; a twentieth of the file system stays free in any case.",
            default="20G",
        ),
        Setting(
            "underlay-device",
            _DEVICE,
            "The network device that carries the clusters' traffic between nodes.",
            default_text="the device that holds the address of the node's own name, or of its NodeAddr in slurm.conf",
        ),
        Setting(
            "metrics-address",
            setting.text(parse_listener, name="address", expected="an absolute path, or ADDRESS:PORT"),
            "Where *pvc-node* serves its metrics (OpenMetrics, over HTTP as ``/metrics``): the path of a Unix socket, "
            "for root alone, or an address of the node and a TCP port, as 127.0.0.1:9717, for all who reach it.",
            default_text="nowhere",
        ),
        Setting(
            "metrics-users",
            setting.boolean(),
            "Whether metrics name users: ``pvc_user_vms``. Whoever reads metrics then knows who has how many VMs.",
            default=False,
        ),
    ),
)

FILE = Table(
    settings=(
        Setting("type", setting.choice("slurm"), "The batch system.", default="slurm"),
        Setting(
            "settings",
            setting.mapping(SETTINGS, dict, "a mapping of keys to values"),
            "The keys below.",
            required=True,
        ),
    ),
)


def read_batch(document: Document, site_dir: Path) -> BatchSettings | None:
    """The settings of a document; None when it has problems, which are noted in it."""
    if document.data is None and document.problems:
        return None
    top: dict[str, Any] = FILE.read({} if document.data is None else document.data, Scope(document))
    values = top["settings"]
    if document.problems or values is None:
        return None
    etcd = EtcdSettings(
        servers=values["etcd-servers"],
        port=values["etcd-client-port"],
        protocol=values["etcd-protocol"],
        auth_type=values["etcd-auth-type"],
        user=values["etcd-user"],
        password_file=values["etcd-password-file"] or str(site_dir / "etcd-password"),
        ca_cert=values["etcd-ca-cert"],
        prefix=values["etcd-prefix"],
    )
    return BatchSettings(
        etcd=etcd,
        batch_args=values["batch-args"],
        accel=values["accel"],
        run_dir=values["run-dir"],
        underlay_device=values["underlay-device"],
        image_cache_dir=values["image-cache-dir"],
        image_cache_size=values["image-cache-size"],
        libvirt_hook=values["libvirt-hook"],
        build_network=values["build-network"],
        metrics_address=values["metrics-address"],
        metrics_users=values["metrics-users"],
    )
