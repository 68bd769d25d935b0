# SPDX-License-Identifier: Apache-2.0
"""Apply a node's ``View``: what its mount namespace shows instead of the host's files."""

from __future__ import annotations

import codecs
import importlib
import os
import pwd
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from pvc.testbed import syscalls
from pvc.testbed.model import Bind, CgroupMount, Device, Farm, View

# Kept as they are when the host's mounts become read-only: devices are written to, proc and sysfs are made anew.
_API = ("/dev", "/proc", "/sys")
_OLD_ROOT = "/mnt"
_KEPT_FLAGS = {
    "nosuid": syscalls.MS_NOSUID,
    "nodev": syscalls.MS_NODEV,
    "noexec": syscalls.MS_NOEXEC,
    "relatime": syscalls.MS_RELATIME,
}


def apply_view(view: View, cgroups: Iterable[CgroupMount]) -> None:
    """Build the view in the caller's mount namespace, which must be its own.

    :raise OSError: a mount failed; the namespace is then of no use.
    """
    syscalls.mount(None, "/", flags=syscalls.MS_REC | syscalls.MS_PRIVATE)
    # Whatever is covered below stays reachable through these descriptors.
    sources = [os.open(bind.source, os.O_PATH | os.O_CLOEXEC) for bind in view.binds]
    if view.root is not None:
        _change_root(view.root)
    asides = [os.open(farm.target, os.O_PATH | os.O_CLOEXEC) for farm in view.farms]
    make_host_read_only()
    syscalls.mount("proc", "/proc", "proc")
    syscalls.mount("sysfs", "/sys", "sysfs")
    mount_cgroups(cgroups)
    for tmpfs in view.tmpfs:
        ensure_target(tmpfs.target, directory=True)
        syscalls.mount("tmpfs", tmpfs.target, "tmpfs", 0, f"mode={tmpfs.mode:o}")
    for farm, fd in zip(view.farms, asides, strict=True):
        _plant(farm, fd)
    for bind, fd in zip(view.binds, sources, strict=True):
        _bind(bind, fd)
    for fd in [*sources, *asides]:
        os.close(fd)
    if view.root is not None:
        # Not earlier: what is bound must come from a mount of this namespace.
        syscalls.umount(_OLD_ROOT)
    for directory in view.directories:
        path = Path(directory.path)
        path.mkdir(exist_ok=True)
        path.chmod(directory.mode)
        if directory.user != "root":
            entry = pwd.getpwnam(directory.user)
            os.chown(path, entry.pw_uid, entry.pw_gid)
    for link in view.links:
        os.symlink(link.target, link.path)
    for device in view.devices:
        _make_device(device)


def _change_root(root: str) -> None:
    """Make a directory this namespace's root. Whoever joins the namespace then has it, which chroot(2) would not do."""
    # This Python's own files are not in that root, and these are read when they are first used.
    for name in ("unicode_escape", "idna"):
        codecs.lookup(name)
    importlib.import_module("http.client")
    syscalls.mount(root, root, flags=syscalls.MS_BIND)
    syscalls.mount("/dev", f"{root}/dev", flags=syscalls.MS_BIND | syscalls.MS_REC)
    # /proc tells which mounts there are, also while they are changed.
    syscalls.mount("proc", f"{root}/proc", "proc")
    syscalls.pivot_root(root, f"{root}{_OLD_ROOT}")
    os.chdir("/")


def make_host_read_only() -> None:
    """Make the host's file systems read-only in this namespace, so that root in the node cannot change them."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        target, options = fields[4].encode().decode("unicode_escape"), fields[5].split(",")
        if fields[fields.index("-") + 1] == "nsfs":
            # A namespace that is kept by a mount: this node must not keep it as well.
            with suppress(OSError):
                syscalls.umount(target)
            continue
        if "ro" in options or any(target == api or target.startswith(f"{api}/") for api in _API):
            continue
        flags = sum(_KEPT_FLAGS.get(option, 0) for option in options)
        # A mount that another one covers cannot be reached, nor changed.
        with suppress(OSError):
            syscalls.mount(None, target, flags=syscalls.MS_REMOUNT | syscalls.MS_BIND | syscalls.MS_RDONLY | flags)


def mount_cgroups(cgroups: Iterable[CgroupMount]) -> None:
    """Mount the hierarchies again: in a cgroup namespace they show the node's own cgroups only.

    :raise OSError: a mount failed.
    """
    mounts = list(cgroups)
    if any(each.version == 1 for each in mounts):
        syscalls.mount("tmpfs", "/sys/fs/cgroup", "tmpfs", 0, "mode=755")
    for each in mounts:
        if each.version == 1:
            ensure_target(each.path, directory=True)
            syscalls.mount("cgroup", each.path, "cgroup", 0, each.options)
        else:
            ensure_target(each.path, directory=True)
            syscalls.mount("cgroup2", each.path, "cgroup2")


def ensure_target(path: str, *, directory: bool) -> None:
    """Make a mount point when there is none."""
    target = Path(path)
    if directory:
        target.mkdir(parents=True, exist_ok=True)
    elif not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()


def _plant(farm: Farm, fd: int) -> None:
    ensure_target(farm.aside, directory=True)
    syscalls.mount(f"/proc/self/fd/{fd}", farm.aside, flags=syscalls.MS_BIND)
    _set_read_only(farm.aside)
    syscalls.mount("tmpfs", farm.target, "tmpfs", 0, "mode=755")
    for entry in os.scandir(farm.aside):
        if entry.name not in farm.own:
            # A relative link means the same from where it was, not from the host's directory aside.
            text = os.readlink(entry.path) if entry.is_symlink() else entry.path
            os.symlink(text, f"{farm.target}/{entry.name}")


def _bind(bind: Bind, fd: int) -> None:
    ensure_target(bind.target, directory=stat.S_ISDIR(os.fstat(fd).st_mode))
    syscalls.mount(f"/proc/self/fd/{fd}", bind.target, flags=syscalls.MS_BIND)
    # A bind mount starts with the flags of where it was taken from, and the host is read-only by now.
    flags = syscalls.MS_RDONLY if bind.read_only else 0
    syscalls.mount(None, bind.target, flags=syscalls.MS_REMOUNT | syscalls.MS_BIND | flags)


def _make_device(device: Device) -> None:
    if not os.path.exists(device.target):
        return
    try:
        os.mknod(device.path, stat.S_IFCHR, os.makedev(device.major, device.minor))
    except PermissionError:  # as in containers: then the node has the host's
        return
    os.chmod(device.path, device.mode)
    syscalls.mount(device.path, device.target, flags=syscalls.MS_BIND)


def _set_read_only(target: str) -> None:
    syscalls.mount(None, target, flags=syscalls.MS_REMOUNT | syscalls.MS_BIND | syscalls.MS_RDONLY)
