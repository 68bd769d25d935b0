# SPDX-License-Identifier: Apache-2.0
"""Persistent drives: the key persistent-drives of templates.yaml."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from pvc.config import setting
from pvc.config.disks import AIO, CACHE, DISCARD_HELP, IOTHREAD_HELP, SIZE, check_disk
from pvc.config.setting import Kind, Scope, Setting, Table, read
from pvc.model.drive import Mmp, PersistentDrive

MAX_DRIVES = 16

# Without quotes, YAML takes yes and no for truth values.
_MMP = Kind(
    "yes | cluster | no",
    "yes, cluster or no",
    {"enum": [True, "cluster", False, "yes", "no"]},
    lambda value, _scope: Mmp({True: "yes", False: "no"}.get(value) or value),
)

ENTRY = Table(
    settings=(
        Setting("cache", CACHE, "As *cache=* in qemu(1). ``unsafe`` loses data when the node fails.",
                default="writeback"),
        Setting("mmp", _MMP,
                "Multi-mount protection: who may have the drive at the same time. ``yes``: one VM; ``cluster``: the "
                "VMs of one cluster, whose guests must know how to share a disk; ``no``: nobody looks.", default=True),
        Setting("size", SIZE, "Make the file, of this size, where it is not there yet.",
                default_text="it must be there"),
        Setting("format", setting.choice("raw", "qcow2"),
                "The file's format. It is never guessed: the first bytes of a raw disk are its guest's to choose.",
                default_text="qcow2 where the path ends so, else raw"),
        Setting("bus", setting.choice("virtio", "scsi"), "How it is attached.", default="virtio"),
        Setting("aio", AIO, "As *aio* above.", default="threads"),
        Setting("discard", setting.boolean(), DISCARD_HELP, default=True),
        Setting("iothread", setting.boolean(), IOTHREAD_HELP + " For ``virtio`` only.", default=False),
    ),
    foreign={"backup": "copy the file while no VM uses it"},
)  # fmt: skip


def persistent_drives() -> Kind:
    """A list of paths, or of mappings from one path to its settings."""
    structure = {
        "type": "array",
        "items": {
            "type": ["string", "object"],
            "description": "a file's path, or a mapping from one path to its settings",
        },
    }
    return Kind("list", "a list of paths", structure, _read)


def _read(value: list[Any], scope: Scope) -> tuple[PersistentDrive, ...]:
    found: list[PersistentDrive] = []
    for index, item in enumerate(value):
        drive = read(_ITEM, item, scope.at(index))
        if drive is None:
            continue
        if any(drive.path == each.path for each in found):
            scope.at(index).add(f"{drive.path} is there twice")
        found.append(drive)
    if len(found) > MAX_DRIVES:
        scope.add(f"a VM can have at most {MAX_DRIVES} persistent drives")
    return tuple(found)


def _read_one(value: str | Mapping[str, Any], scope: Scope) -> PersistentDrive | None:
    if isinstance(value, str):
        return _make(value, ENTRY.defaults(scope), scope)
    if len(value) != 1:
        raise ValueError("each drive is a list item of its own, with one path")
    ((path, given),) = value.items()
    at = scope.at(path)
    count = len(scope.document.problems)
    values = ENTRY.read({} if given is None else given, at)
    return _make(path, values, at) if len(scope.document.problems) == count else None


_ITEM = Kind("path", "a path", {"type": "string"}, _read_one)


def _make(text: str, values: Mapping[str, Any], scope: Scope) -> PersistentDrive:
    path = scope.expansion.expand_path(text, at_start=True) if scope.expansion else text
    # %{vm_rank} and %{job_id} stand for numbers: they make no path relative.
    if not path.startswith("/") or "\0" in path or path.endswith("/"):
        raise ValueError(f"{path!r} is not the absolute path of a file")
    given = dict(values)
    given["format"] = given["format"] or ("qcow2" if path.endswith(".qcow2") else "raw")
    if given["format"] == "qcow2" and given["mmp"] is not Mmp.YES:
        raise ValueError("a qcow2 file can have one writer only: mmp must be yes, or the format raw")
    check_disk(given)
    return PersistentDrive(path=os.path.normpath(path), **given)
