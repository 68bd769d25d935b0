# SPDX-License-Identifier: Apache-2.0
"""UEFI firmware for tests: the node's, or Debian's package unpacked, nothing installed."""

from __future__ import annotations

import fcntl
import json
import shutil
import subprocess
from pathlib import Path

from pvc.host.firmware import SYSTEM_DIRS

CACHE = Path("/var/tmp/pvc-test-ovmf-1")


def provide_firmware(home: Path) -> None:
    """Let QEMU's descriptors in ``home`` name firmware, where the machine has none."""
    if any(each.is_dir() for each in SYSTEM_DIRS):
        return
    CACHE.mkdir(exist_ok=True)
    with open(CACHE / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (CACHE / "unpacked").exists():
            subprocess.run(["apt-get", "-q", "download", "ovmf"], check=True, cwd=CACHE)
            subprocess.run(["dpkg-deb", "-x", next(CACHE.glob("*.deb")), CACHE / "work"], check=True)
            (CACHE / "work").rename(CACHE / "unpacked")
    target = home / ".config/qemu/firmware"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for path in (CACHE / "unpacked/usr/share/qemu/firmware").glob("*.json"):
        text = path.read_text().replace('"/usr/share/OVMF/', f'"{CACHE}/unpacked/usr/share/OVMF/')
        (target / path.name).write_text(json.dumps(json.loads(text)))
