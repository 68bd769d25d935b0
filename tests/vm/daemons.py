# SPDX-License-Identifier: Apache-2.0
"""The two virtiofsd for tests: QEMU's own of Debian 12, and that of later Debians, unpacked with its libraries."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
from pathlib import Path

CACHE = Path("/var/tmp/pvc-test-virtiofsd-1")
_PACKAGES = ("virtiofsd", "libc6", "libcap-ng0", "libseccomp2", "libgcc-s1")
_LIBRARIES = "usr/lib/x86_64-linux-gnu"


def describe_daemon(kind: str, home: Path) -> None:
    """Let QEMU's descriptors in ``home`` name a daemon: ``old``, ``new``, or ``none`` at all."""
    target = home / ".config/qemu/vhost-user"
    target.mkdir(parents=True)
    # Of the same name, they hide the machine's own.
    (target / "50-virtiofsd.json").touch()
    if kind == "old":
        return
    (target / "50-qemu-virtiofsd.json").touch()
    if kind == "new":
        facts = json.loads((_provide() / "usr/share/qemu/vhost-user/50-virtiofsd.json").read_text())
        (target / "60-new.json").write_text(json.dumps(facts | {"binary": os.fspath(CACHE / "virtiofsd")}))


def _provide() -> Path:
    CACHE.mkdir(exist_ok=True)
    with open(CACHE / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (CACHE / "unpacked").exists():
            _download(CACHE / "work")
            (CACHE / "virtiofsd").write_text(
                f"#!/bin/sh\nexec {CACHE}/unpacked/{_LIBRARIES}/ld-linux-x86-64.so.2 "
                f'--library-path {CACHE}/unpacked/{_LIBRARIES} {CACHE}/unpacked/usr/libexec/virtiofsd "$@"\n'
            )
            (CACHE / "virtiofsd").chmod(0o755)
            (CACHE / "work/unpacked").rename(CACHE / "unpacked")
            shutil.rmtree(CACHE / "work")
    return CACHE / "unpacked"


def _download(work: Path) -> None:
    shutil.rmtree(work, ignore_errors=True)
    for name in ("lists/partial", "cache/archives/partial"):
        (work / name).mkdir(parents=True)
    key = "/usr/share/keyrings/debian-archive-keyring.gpg"
    (work / "sources").write_text(f"deb [signed-by={key}] http://deb.debian.org/debian trixie main\n")
    places = {"Dir::Etc::sourcelist": work / "sources", "Dir::Etc::sourceparts": "/dev/null"}
    places |= {"Dir::State::lists": work / "lists", "Dir::Cache": work / "cache"}
    apt = ["apt-get", "-q", "-o", "APT::Sandbox::User=root", *(f"-o{key}={value}" for key, value in places.items())]
    subprocess.run([*apt, "update"], check=True)
    subprocess.run([*apt, "download", *_PACKAGES], check=True, cwd=work)
    for package in work.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", package, work / "unpacked"], check=True)
