# SPDX-License-Identifier: Apache-2.0
"""templates.yaml and templates.d: VMs as users describe them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pvc.config import setting
from pvc.config.disks import AIO, AIO_HELP, CACHE, CACHE_HELP, DISCARD_HELP, DISK, IOTHREAD_HELP, SIZE, build_disk
from pvc.config.drives import persistent_drives
from pvc.config.hooks import HOOKS, build_hooks
from pvc.config.mounts import mount_points
from pvc.config.setting import Expansion, Kind, Scope, Setting, Table
from pvc.config.userdata import check_user_data, read_user_data_file
from pvc.config.yamlmarks import Document
from pvc.model.request import MAX_CPUS
from pvc.model.vm import KERNEL_APPEND
from pvc.parse import parse_size

MAX_MEMORY_MIB = 64 << 20
MIN_GUEST_MIB = 64
SIZE_OPTIONS = frozenset({"--ntasks", "--cpus-per-task", "--mem", "--mem-per-cpu", "--pvc"})
_GRES = r"[A-Za-z0-9_.:=/()-]+"
_NO_SPACE = r"[^\s]+"


def _read_user_data(value: Any, scope: Scope) -> str:
    """The cloud-config itself, or the file that holds it, relative to the file that names it."""
    if isinstance(value, dict):
        import yaml

        text = "#cloud-config\n" + yaml.safe_dump(value, sort_keys=False)
        check_user_data(text)
        return text
    if "\n" in value or value.startswith("#"):  # neither is in a path that anybody has
        check_user_data(value)
        return str(value)
    given = scope.expansion.expand_path(value) if scope.expansion else value
    return read_user_data_file(Path(scope.document.file).parent / given)


def _parse_memory(text: str) -> int:
    mib = parse_size(text, default_unit="m") >> 20
    if not MIN_GUEST_MIB <= mib <= MAX_MEMORY_MIB:
        raise ValueError(f"{text!r} is not from {MIN_GUEST_MIB}M to {MAX_MEMORY_MIB >> 20}T")
    return mib


def _parse_slurm_arg(text: str) -> str:
    name = text.partition("=")[0]
    if name in SIZE_OPTIONS or text[:2] in {"-n", "-c"}:
        raise ValueError(f"{name}: the definition, cores and memory say this")
    if (
        not text.startswith("-")
        or text.startswith("---")
        or text in {"-", "--"}
        or any(each.isspace() for each in text)
    ):
        raise ValueError(f"{text!r} is not one word such as --partition=long")
    return text


def _read_tpm(value: Any, _scope: Scope) -> str:
    """The version; YAML makes a number of it where it has no quotes."""
    return "" if value == "none" else "2.0"


def _read_kernel(value: Any, scope: Scope) -> str:
    """A path, relative to the file that names it."""
    given = scope.expansion.expand_path(value) if scope.expansion else value
    if "\0" in given:
        raise ValueError(f"{given!r} is not the path of a file")
    return os.path.normpath(Path(scope.document.file).absolute().parent / given)


_NAME = setting.text(name="name", expected="a name")

ENTRY = Table(
    settings=(
        Setting(
            "image",
            setting.expanded(name="[repo:]image[@revision]", expected="an image's name"),
            "The image that the VM's disk starts from. Without one the VM has no such disk, and boots over its "
            "networks (PXE).",
        ),
        Setting(
            "resource-set",
            _NAME,
            "What the VM gets besides cores and memory: a name from resources.yaml.",
            default_text="the site's default resource set",
        ),
        Setting("inherits", _NAME, "Another template, whose keys count where this one has none. Not its description."),
        Setting("description", setting.text(), "One line for lists."),
        Setting(
            "user-data",
            Kind(
                "path | text | mapping",
                "a file's path, a text of several lines, or a mapping (cloud-config)",
                {"type": ["string", "object"]},
                _read_user_data,
            ),
            "What cloud-init does at the first boot: a file, relative to this one, the text itself "
            "(``user-data: |``), or a cloud-config as a mapping. See *User-data*.",
        ),
        Setting(
            "instance-id",
            setting.word("text", r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", "letters, digits, '.', '_' and '-'"),
            "The instance that guests are to cloud-init. A disk that was saved as the same one is not set up anew: "
            "what cloud-init does once for an instance stays as it was, host keys of ssh and users among it.",
            default_text="a new one for each VM of each cluster",
        ),
        Setting(
            "kernel",
            Kind("path", "a path", {"type": "string"}, _read_kernel),
            "A kernel, relative to this file, that QEMU starts in place of the image's own boot loader or kernel; it "
            "has to be there on the nodes. Its command line is that of the image's own kernel, where it has one, else "
            f"``{KERNEL_APPEND}``, and it gets no initrd; *pvc image import --kernel* makes an image with all three.",
        ),
        Setting(
            "mount-points",
            mount_points(),
            "Directories of the node for the guest, by a name or by the guest's directory; each is a path or a mapping "
            "as in *Keys of mount-points*.",
            default={},
        ),
        Setting(
            "machine-type",
            setting.word("text", _NO_SPACE, "a machine type of QEMU"),
            "The machine that QEMU emulates, with its options. "
            "A kernel that QEMU starts in a ``microvm`` without KVM gets ``tsc_early_khz=``.",
            default="q35",
        ),
        Setting(
            "cpu-model",
            setting.word("text", _NO_SPACE, "a CPU model of QEMU"),
            "The guest's CPU. ``auto`` is ``host`` with KVM and ``max,erms=off,fsrm=off`` without.",
            default="auto",
        ),
        Setting(
            "nic-model",
            setting.word("text", r"[A-Za-z0-9._-]+", "a network device of QEMU"),
            "The guest's network devices: ``virtio-net``, ``e1000e``, …",
            default="virtio-net",
        ),
        Setting("cores", setting.integer(1, MAX_CPUS), "Cores of the VM where ``-c`` is not given.", default_text="1"),
        Setting(
            "memory",
            setting.text(_parse_memory, name="size", expected="a size such as 2G"),
            "Memory of the guest where ``-m`` is not given, as ``2G``.",
            default_text="what Slurm gives",
        ),
        Setting(
            "slurm-args",
            setting.list_of(setting.expanded(_parse_slurm_arg, name="text", expected="an option of Slurm")),
            "Options of salloc and sbatch for such VMs, as ``--option=value``. They come after the site's *batch-args* "
            "and before those of the command line; VMs with other options are a component of their own (pvc-alloc(1)).",
            default=[],
        ),
        Setting(
            "gres",
            setting.list_of(setting.word("text", _GRES, "a generic resource such as gpu:1"), single=True),
            "Generic resources of each node with such VMs, as for Slurm's ``--gres``. VMs get devices of them by a "
            "network with the same *gres* (**pvc-networks.yaml**\\ (5)).",
            default=[],
        ),
        Setting(
            "hugepages",
            Kind("no | 2M | 1G", "no, 2M or 1G", {"enum": [False, "2M", "1G"]}, lambda value, _scope: value or ""),
            "Take the guest's memory from the node's huge pages of this size.",
            default=False,
        ),
        Setting(
            "firmware",
            setting.choice("bios", "uefi", "uefi-secure"),
            "What starts the guest. ``uefi-secure`` has Secure Boot on, with the usual keys; it needs a ``q35``, and a "
            "guest of 384 MiB or more. The "
            "firmware is the node's (Debian: *ovmf*), found by QEMU's descriptors; each VM has its own variables.",
            default="bios",
        ),
        Setting(
            "tpm",
            Kind("none | 2.0", "none or 2.0", {"enum": ["none", "2.0", 2.0]}, _read_tpm),
            "A Trusted Platform Module, emulated by the node's swtpm(8). What it keeps stays over starts of the VM and "
            "vanishes with the cluster.",
            default="none",
        ),
        Setting(
            "disk-model",
            setting.choice("virtio", "virtio-scsi", "ide"),
            "How the disk is attached.",
            default="virtio",
        ),
        Setting("disk-cache", CACHE, CACHE_HELP, default="unsafe"),
        Setting(
            "disk-size",
            SIZE,
            "Size of the disk where it shall be larger than the image. At its boot the root file system grows with it: "
            "in pvc's own images, where cloud-init has growpart, and without cloud-init by the agent where it is ext4 "
            "on all of the disk. Elsewhere that is its owner's part.",
            default_text="the image's",
        ),
        Setting("disk-aio", AIO, AIO_HELP, default="threads"),
        Setting("disk-discard", setting.boolean(), DISCARD_HELP, default=True),
        Setting("disk-iothread", setting.boolean(), IOTHREAD_HELP + " Not for ``ide``.", default=True),
        Setting(
            "disks",
            setting.list_of(setting.mapping(DISK, build_disk, "a mapping with size or image")),
            "More disks, as mappings; see *Keys of disks*. They begin anew with each VM, and vanish with it.",
            default=[],
        ),
        Setting(
            "persistent-drives",
            persistent_drives(),
            "Files of the host that the VM writes to and that stay when it ends. Each is a path, or a mapping from a "
            "path to the settings of *Keys of persistent-drives*; ``%{vm_rank}`` in it gives each VM its own.",
            default=[],
        ),
        Setting(
            "qemu-bin",
            setting.path(expected="a command"),
            "The QEMU to run.",
            default="qemu-system-x86_64",
        ),
        Setting(
            "hypervisor",
            setting.choice("qemu", "libvirt"),
            "What starts QEMU: the VM's supervisor itself, or the job owner's own libvirt, so that virsh(1) and the "
            "site's *libvirt-hook* can be used. See *Through libvirt*.",
            default="qemu",
        ),
        Setting(
            "custom-args",
            setting.list_of(setting.expanded(at_start=True)),
            "Arguments put at the end of QEMU's command line.",
            default=[],
        ),
        Setting(
            "remote-display",
            setting.choice("none", "vnc", "spice"),
            "Give the VM a screen, see ``pvc display``: at a socket of its node that only the job's owner reaches.",
            default="none",
        ),
        Setting(
            "hooks",
            setting.mapping(HOOKS, build_hooks, "a mapping with before-start, reachable, before-stop or after-stop"),
            "Programs that run on the VM's node as the job's owner around the VM's life; see *Keys of hooks*.",
            default={},
        ),
        Setting(
            "restart",
            setting.choice("never", "on-failure", "always"),
            "Whether a VM that ended by itself starts again on its disk: when its guest or QEMU crashed, or also after "
            "it powered itself off. After 1, 2, 4, … seconds; five times, and anew once it ran for ten minutes.",
            default="never",
        ),
    ),
    idle={
        "emulator-cores": "QEMU's own threads share the VM's cores",
        "bind-vcpus": "every vCPU is pinned wherever the job's cores are known",
        "full-node": "Slurm gives whole nodes, by slurm-args: [--exclusive]",
    },
)


@dataclass(frozen=True)
class Declared:
    """One entry of a file: the keys that it gives, and where."""

    name: str
    values: Mapping[str, Any]
    scope: Scope
    # Keys without a value: their defaults count, whatever an ancestor says.
    unset: frozenset[str] = frozenset()

    @property
    def source(self) -> str:
        """file:line."""
        return self.place_of()

    def place_of(self, *keys: str) -> str:
        """file:line of one of its keys."""
        return f"{self.scope.document.file}:{self.scope.document.line((*self.scope.path, *keys))}"


def read_templates(document: Document, expansion: Expansion) -> dict[str, Declared]:
    """The entries of a document, as they are written; what is wrong is noted in it."""
    return {
        name: Declared(name, ENTRY.read_given(value, scope), scope, _find_unset(value))
        for name, value, scope in setting.named_entries(document, expansion)
    }


def _find_unset(value: Any) -> frozenset[str]:
    if not isinstance(value, dict):
        return frozenset()
    return frozenset(each.key for each in ENTRY.settings if each.key in value and value[each.key] is None)
