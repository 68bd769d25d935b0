# SPDX-License-Identifier: Apache-2.0
"""Kernel settings that several jobs share: the value before the first comes back after the last.

The prior value and the jobs that need the setting are in one file, written before the kernel is. The
caller holds the node's lock.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from pvc.errors import HostError
from pvc.files import read_text, write_atomic

ROOT = Path("/proc/sys")


def acquire(record: Path, key: str, value: str, job_id: int, *, spread: str | None = None) -> None:
    """Set ``key`` for a job, remembering in ``record`` what it was before any job of ours.

    ``spread`` is a pattern of the settings that the kernel changes together with it; they are put back, too.

    :raise HostError: there is no such setting, or the kernel refuses the value.
    """
    path = _path(key)
    entries = _read(record)
    prior = read_text(path, default="")
    if not path.exists():
        raise HostError(f"there is no kernel setting {key}")
    entry = entries.setdefault(key, {"prior": prior, "jobs": []})
    if spread is not None and "others" not in entry:
        paths = sorted(ROOT.glob(spread))
        entry["others"] = {os.fspath(path.relative_to(ROOT)): read_text(path, default="") for path in paths}
    if job_id not in entry["jobs"]:
        entry["jobs"].append(job_id)
    write_atomic(record, json.dumps(entries), mode=0o600)
    if prior != value:
        _write(path, key, value)


def release(record: Path, key: str, job_id: int) -> None:
    """Give up a job's need of ``key``; the last one restores the prior value. Absent is fine.

    :raise HostError: the kernel refuses the prior value.
    """
    entries = _read(record)
    entry = entries.get(key)
    if entry is None or job_id not in entry["jobs"]:
        return
    entry["jobs"].remove(job_id)
    if not entry["jobs"]:
        path = _path(key)
        if path.exists() and read_text(path) != entry["prior"]:
            _write(path, key, entry["prior"])
        for other, before in entry.get("others", {}).items():
            if _path(other).exists() and read_text(_path(other)) != before:
                _write(_path(other), other, before)
        del entries[key]
    if entries:
        write_atomic(record, json.dumps(entries), mode=0o600)
    else:
        record.unlink(missing_ok=True)


def read_prior(record: Path, key: str) -> str:
    """What a setting was before any job of ours; empty when there is none. The caller needs no lock."""
    # Whoever acquires it writes the record first.
    now = read(key)
    entry = _read(record).get(key)
    return str(entry["prior"]) if entry is not None else now


def held(record: Path, job_id: int | None = None) -> frozenset[str]:
    """The settings that jobs hold, or one job."""
    return frozenset(key for key, entry in _read(record).items() if job_id is None or job_id in entry["jobs"])


def read_jobs(record: Path) -> set[int]:
    """The jobs that hold a setting."""
    return {job_id for entry in _read(record).values() for job_id in entry["jobs"]}


def read(key: str) -> str:
    """A setting's value; empty when there is none."""
    return read_text(_path(key), default="")


def has(key: str) -> bool:
    """Whether the kernel has such a setting, or such a directory of them."""
    return _path(key).exists()


def set_own(key: str, value: str) -> None:
    """Set a value that belongs to a device or namespace of ours and goes with it.

    :raise HostError: no such setting, or refused.
    """
    _write(_path(key), key, value)


def _path(key: str) -> Path:
    # sysctl(8): "/" separates when a part holds a ".", as device names may.
    return ROOT / (key if "/" in key else key.replace(".", "/"))


def _read(record: Path) -> dict[str, Any]:
    text = read_text(record, default="")
    if not text:
        return {}
    entries: dict[str, Any] = json.loads(text)
    return entries


def _write(path: Path, key: str, value: str) -> None:
    try:
        # A list can be empty, but nothing would be written then.
        path.write_text(value or "\n")
    except OSError as err:
        raise HostError(f"cannot set {key} to {value}") from err
