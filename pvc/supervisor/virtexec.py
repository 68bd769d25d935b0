# SPDX-License-Identifier: Apache-2.0
"""What libvirt runs in place of a program: it asks the supervisor for descriptors first.

As the bridge helper (qemu.conf) it is given ``--br=NAME --fd=N`` and has to send a tap through the socket N, as
qemu-bridge-helper does; here that socket goes to the supervisor, which answers at its other end. As a domain's
emulator, named by ``-name guest=NAME,…``, it takes the supervisor's descriptors for that VM to the numbers from FIRST
on, and becomes QEMU. Asked what it can do, QEMU has no such name. A script of its own, started by ``python3 -IS``:
every VM waits for it.
"""

from __future__ import annotations

import os
import socket
import sys

FIRST = 500
MOST = 64


def give_tap(words: dict[str, str]) -> None:
    """:raise OSError: no supervisor, or it has no such tap."""
    with _connect() as supervisor:
        socket.send_fds(supervisor, [f"tap {words['br']}".encode()], [int(words["fd"])])
        if supervisor.recv(1) != b"+":
            sys.exit(f"the supervisor has no tap {words['br']}")


def take_files(name: str) -> None:
    """Open the VM's descriptors here, for the program that this one becomes.

    :raise OSError: no supervisor, or it does not know the VM.
    """
    with _connect() as supervisor:
        supervisor.sendall(f"files {name}".encode())
        told, fds, _, _ = socket.recv_fds(supervisor, 1, MOST)
    if told != b"+":
        sys.exit(f"the supervisor does not know {name}")
    for number, fd in enumerate(fds, start=FIRST):
        os.dup2(fd, number)
        os.close(fd)


def _connect() -> socket.socket:
    supervisor = socket.socket(socket.AF_UNIX)
    supervisor.connect(sys.argv[1])
    return supervisor


def main() -> None:
    """``SOCKET`` and libvirt's words, or ``SOCKET COMMAND…`` and libvirt's words."""
    words = sys.argv[2:]
    if words[0].startswith("--"):
        give_tap(dict(word[2:].partition("=")[::2] for word in words))
        return
    if "-name" in words:
        name = words[words.index("-name") + 1].partition("guest=")[2].partition(",")[0]
        take_files(name)
    os.execvp(words[0], words)


if __name__ == "__main__":
    main()
