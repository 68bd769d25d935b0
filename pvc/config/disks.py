# SPDX-License-Identifier: Apache-2.0
"""Disks of templates: what their keys have in common, and the mapping of ``disks``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pvc.config import setting
from pvc.config.setting import Setting, Table
from pvc.model.site import DiskWish
from pvc.parse import parse_size

MIN_DISK, MAX_DISK = 1 << 20, 1 << 50


def _parse_disk_size(text: str) -> int:
    size = parse_size(text, default_unit="g")
    if not MIN_DISK <= size <= MAX_DISK:
        raise ValueError(f"{text!r} is not from {MIN_DISK >> 20}M to {MAX_DISK >> 40}T")
    return size


SIZE = setting.text(_parse_disk_size, name="size", expected="a size such as 20G")
CACHE = setting.choice("unsafe", "writeback", "none", "writethrough", "directsync")
AIO = setting.choice("threads", "native", "io_uring")
CACHE_HELP = "As *cache=* in qemu(1). ``unsafe`` is the fastest and right for disks that vanish with the job."
AIO_HELP = (
    "How QEMU reads and writes files. ``native`` is for the caches ``none`` and ``directsync``; ``io_uring`` is used "
    "on nodes where a probe shows that it works, elsewhere ``threads``."
)
DISCARD_HELP = "Give blocks that the guest discards back to the node."
IOTHREAD_HELP = "Serve the disk in a thread of its own."


def check_aio(aio: str, cache: str) -> None:
    """:raise ValueError: QEMU would refuse: native needs O_DIRECT (qemu(1))."""
    if aio == "native" and cache not in {"none", "directsync"}:
        raise ValueError(f"aio native needs the cache none or directsync, not {cache}")


def check_disk(values: Mapping[str, Any]) -> None:
    """:raise ValueError: keys of one disk do not go together."""
    if values["iothread"] and values["bus"] != "virtio":
        raise ValueError("iothread is for disks on virtio; scsi disks share their controller's")
    check_aio(values["aio"], values["cache"])


def build_disk(values: Mapping[str, Any]) -> DiskWish:
    """One entry of ``disks``.

    :raise ValueError: keys do not go together.
    """
    if values["image"] is None and values["size"] is None:
        raise ValueError("neither size nor image is given")
    check_disk(values)
    return DiskWish(**values)


DISK = Table(
    settings=(
        Setting("size", SIZE, "Size of the disk; without an image it is empty.", default_text="the image's"),
        Setting(
            "image",
            setting.expanded(name="[repo:]image[@revision]", expected="an image's name"),
            "The image that it starts from.",
        ),
        Setting("bus", setting.choice("virtio", "scsi"), "How it is attached.", default="virtio"),
        Setting("cache", CACHE, CACHE_HELP, default="unsafe"),
        Setting("aio", AIO, AIO_HELP, default="threads"),
        Setting("discard", setting.boolean(), DISCARD_HELP, default=True),
        Setting("iothread", setting.boolean(), IOTHREAD_HELP + " For ``virtio`` only.", default=False),
    )
)
