# SPDX-License-Identifier: Apache-2.0
"""A running VM's disk as a file: what QEMU is told of the file, and of the job that fills it.

QEMU copies by up to 64 requests of a mebibyte at a time, and keeps a table of 32 MiB for a file that may become large:
memory that is the job's, beside the guest's own.
"""

from __future__ import annotations

from typing import Any

_WORKERS = 8
_CHUNK = 1 << 20
# A file that is written from its beginning to its end needs the tables of where it is.
_TABLES = 1 << 20


def plan_saved(name: str, filename: str, backing: dict[str, Any] | None) -> dict[str, Any]:
    """The node ``name`` of an empty qcow2, which rests on ``backing``; the throttle group ``name`` is its file's."""
    file = {"driver": "file", "filename": filename, "locking": "off"}
    slow = {"driver": "throttle", "throttle-group": name, "file": file}
    tables = {"l2-cache-size": _TABLES}
    return {"driver": "qcow2", "node-name": name, "file": slow, "backing": backing, "discard": "unmap", **tables}


def plan_backup(device: str, target: str, speed: int) -> dict[str, Any]:
    """The job that copies what a disk's overlay holds; holes are no bytes of its ``speed``."""
    bounds = {"max-workers": _WORKERS, "max-chunk": _CHUNK}
    return {"device": device, "target": target, "sync": "top", "speed": speed, "x-perf": bounds}
