# SPDX-License-Identifier: Apache-2.0
"""Processes beside QEMU that serve one VM: swtpm for its TPM, a virtiofsd for each of its directories over virtio-fs.

QEMU has a socket's one end, the helper the other or its listener; both are inherited, so nothing stays in the file
system. Facts from swtpm(8), virtiofsd(1) of QEMU 7.2, and ``virtiofsd --help`` of the project of that name (1.13).
"""

from __future__ import annotations

from dataclasses import dataclass

from pvc.errors import GuestError
from pvc.model.vm import Mount, VmTemplate

# No PID namespace: it would take a process more, which could not say how the daemon ended.
_NAMESPACES = ("--user", "--map-root-user", "--mount", "--net", "--ipc")


@dataclass(frozen=True)
class ShareDaemon:
    """A node's virtiofsd; ``separate``: it takes options of its own, where QEMU's older one has ``-o`` only."""

    binary: str
    separate: bool


@dataclass(frozen=True)
class Helper:
    """``program`` is the process' name for people, ``what`` the VM has of it; ``argv`` without its descriptor.

    ``fd_word`` is the last argument, with the descriptor in place of {fd}. ``listens``: it is that of a listening
    socket which QEMU's end is connected to, otherwise the socket's other end.
    """

    name: str
    program: str
    what: str
    argv: tuple[str, ...]
    fd_word: str
    listens: bool

    def command(self, fd: int) -> list[str]:
        """The command line, with its descriptor."""
        return [*self.argv, self.fd_word.format(fd=fd)]


@dataclass(frozen=True)
class HelperPaths:
    """What helpers need of their node: ``guard`` starts python(1) on the program that confines a virtiofsd."""

    tpm_state: str
    guard: tuple[str, ...]
    daemon: ShareDaemon | None


def shared_mounts(template: VmTemplate) -> tuple[Mount, ...]:
    """The directories that a process of their own serves."""
    return tuple(each for each in template.mounts if each.type == "virtiofs")


def plan_helpers(template: VmTemplate, paths: HelperPaths) -> tuple[Helper, ...]:
    """All helpers of one VM: its TPM's first, then one for each directory over virtio-fs, in their order.

    :raise GuestError: the node has no virtiofsd.
    """
    found = []
    if template.tpm:
        swtpm = ("swtpm", "socket", "--tpm2", "--tpmstate", f"dir={paths.tpm_state},mode=0600", "--ctrl")
        found.append(Helper("tpm", "swtpm", "TPM", swtpm, "type=unixio,clientfd={fd}", listens=False))
    for i, mount in enumerate(shared_mounts(template)):
        if paths.daemon is None:
            raise GuestError(
                f"template {template.name}: this node has no virtiofsd, which {mount.target} needs (type virtiofs)",
                hint="install it on the nodes (Debian: virtiofsd; in Debian 12 it comes with QEMU), or use type 9p",
            )
        argv = (*_confined(paths, mount), *_daemon(paths.daemon, mount))
        found.append(Helper(f"fs{i}", "virtiofsd", f"directory {mount.target}", argv, "--fd={fd}", listens=True))
    return tuple(found)


def _confined(paths: HelperPaths, mount: Mount) -> tuple[str, ...]:
    """In namespaces of its own, where the job's owner is root and nobody else exists; see pvc/host/shareguard.py."""
    mode = "ro" if mount.read_only else "rw"
    return ("unshare", *_NAMESPACES, "--", *paths.guard, mode, mount.source, "--")


def _daemon(daemon: ShareDaemon, mount: Mount) -> tuple[str, ...]:
    # The guard puts its own name of the directory in place of {dir}. It has made the namespaces, so what is left to the
    # daemon is its root; and no limit can be raised in a user namespace.
    if not daemon.separate:
        return (daemon.binary, "-o", "source={dir},sandbox=chroot,log_level=warn", "--rlimit-nofile=0")
    options = ("--shared-dir={dir}", "--sandbox=chroot", "--log-level=warn", "--rlimit-nofile=0")
    return (daemon.binary, *options, *(["--readonly"] if mount.read_only else []))
