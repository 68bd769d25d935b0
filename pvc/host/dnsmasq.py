# SPDX-License-Identifier: Apache-2.0
"""dnsmasq(8) as the DHCP and DNS server of one cluster on one node."""

from __future__ import annotations

import os
import pwd
import select
import signal
from contextlib import suppress
from pathlib import Path

from pvc import run
from pvc.errors import HostError
from pvc.files import read_text, remove_tree, write_atomic
from pvc.host import netns
from pvc.plan.dnsmasq import USER

CONFIG, HOSTS, PID = "dnsmasq.conf", "hosts", "dnsmasq.pid"
_END_TIMEOUT_MS = 5000


def start(namespace: str, directory: Path, config: str, hosts: str) -> None:
    """Write its files and start it in the namespace; it has bound its sockets when this returns.

    :raise HostError: dnsmasq is missing or refuses its configuration.
    """
    stop(directory)
    directory.mkdir(mode=0o711, parents=True, exist_ok=True)
    write_atomic(directory / CONFIG, config, mode=0o400)
    write_atomic(directory / HOSTS, hosts, mode=0o400)
    # It reads the names when it is root no more.
    os.chown(directory / HOSTS, pwd.getpwnam(USER).pw_uid, -1)
    _launch(namespace, directory)


def start_again(namespace: str, directory: Path) -> None:
    """Start it with the files that it had.

    :raise HostError: they are gone, or dnsmasq refuses.
    """
    (directory / PID).unlink(missing_ok=True)
    _launch(namespace, directory)


def _launch(namespace: str, directory: Path) -> None:
    argv = ["dnsmasq", f"--conf-file={directory / CONFIG}", f"--pid-file={directory / PID}"]
    netns.run_inside(namespace, lambda: run.run(argv))


def stop(directory: Path) -> None:
    """End the server of that directory and remove its files; absent is fine.

    :raise HostError: it did not end.
    """
    text = read_text(directory / PID, default="")
    if text.isdecimal():
        _end(int(text), directory)
    remove_tree(directory)


def is_running(directory: Path) -> bool:
    """Whether the server of that directory is alive."""
    return find_process(directory) is not None


def find_process(directory: Path) -> int | None:
    """The process id of the server of that directory, if it is alive."""
    text = read_text(directory / PID, default="")
    return int(text) if text.isdecimal() and _is_ours(int(text), directory) else None


def _end(pid: int, directory: Path) -> None:
    # A pidfd keeps meaning this process even when the number is used again.
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if not _is_ours(pid, directory):
            return
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, signal.SIGKILL)
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        if not poll.poll(_END_TIMEOUT_MS):
            raise HostError(f"dnsmasq (process {pid}) does not end")
    finally:
        os.close(handle)


def _is_ours(pid: int, directory: Path) -> bool:
    words = read_text(Path(f"/proc/{pid}/cmdline"), default="").split("\0")
    return f"--conf-file={directory / CONFIG}" in words
