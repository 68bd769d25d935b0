"""What libvirt runs as its bridge helper: asks the supervisor for a tap, in place of opening one.

libvirt of a user gives ``--br=NAME --fd=N`` and reads the tap's descriptor from the socket N (as qemu-bridge-helper
does, see qemu.conf). That socket goes to the supervisor, which answers at its other end. A script of its own, started
by ``python3 -IS``: every start of a VM waits for it.
"""

from __future__ import annotations

import os
import socket
import sys


def main() -> None:
    """:raise OSError: no supervisor, or it has no such tap."""
    words = dict(word[2:].partition("=")[::2] for word in sys.argv[1:])
    with socket.socket(socket.AF_UNIX) as supervisor:
        supervisor.connect(os.environ["PVC_TAPS"])
        socket.send_fds(supervisor, [words["br"].encode()], [int(words["fd"])])
        if supervisor.recv(1) != b"+":
            sys.exit(f"the supervisor has no tap {words['br']}")


if __name__ == "__main__":
    main()
