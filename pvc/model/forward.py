# SPDX-License-Identifier: Apache-2.0
"""What ``pvc forward`` is asked for: ports of the login node's loopback and of VMs, and which leads to which."""

from __future__ import annotations

import re
from dataclasses import dataclass

_HOST = r"\[[0-9a-fA-F:.]{2,45}\]|(?!\d+:)[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,252}[A-Za-z0-9])?"
_PARTS = re.compile(
    rf"(?:(?P<local>\d{{1,5}}):)?(?P<vm>vm\d{{1,6}}):(?:(?P<host>{_HOST}):)?(?P<far>\d{{1,5}}|/[^:\0]+)", re.ASCII
)


@dataclass(frozen=True)
class Forward:
    """``local``: a port of the login node's loopback, 0: any; ``far``: a port of the VM, or a Unix socket's path there.

    ``reverse``: the VM's port leads to the login node's. ``host``: the port is that of this host, as the VM knows and
    reaches it; "": the VM's own loopback.
    """

    rank: int
    local: int
    far: str
    udp: bool = False
    reverse: bool = False
    host: str = ""

    @property
    def there(self) -> str:
        """Where it leads in the VM, without the VM."""
        if not self.host:
            return self.far
        return f"[{self.host}]:{self.far}" if ":" in self.host else f"{self.host}:{self.far}"

    @property
    def vm(self) -> str:
        """The VM's name."""
        return f"vm{self.rank}"

    def __str__(self) -> str:
        kind = "/udp" if self.udp else ""
        if self.reverse:
            return f"{self.vm}:{self.far}{kind} -> 127.0.0.1:{self.local}"
        return f"127.0.0.1:{self.local}{kind} -> {self.vm}:{self.there}"


def parse_forward(text: str, *, udp: bool = False, reverse: bool = False) -> Forward:
    """``[LOCAL:]VM:[HOST:]PORT`` or ``[LOCAL:]VM:/PATH``; without LOCAL it is the same port, and any for a path.

    :raise ValueError: it is neither.
    """
    match = _PARTS.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not [PORT:]VM:PORT, such as vm0:6443 or 8080:vm2:80")
    far = match["far"]
    is_path = far.startswith("/")
    local = match["local"] or ("0" if is_path else far)
    for port in (local, *(() if is_path else (far,))):
        if int(port) > 65535 or (port == far and int(port) == 0 and not reverse):
            raise ValueError(f"{text!r}: there is no port {port}")
    host = (match["host"] or "").strip("[]")
    if host and (is_path or reverse):
        raise ValueError(f"{text!r}: a host has ports, and they lead there, not back")
    if is_path and udp:
        raise ValueError(f"{text!r}: a Unix socket is not reached by UDP")
    if reverse and int(local) == 0:
        raise ValueError(f"{text!r}: say which port of this machine is meant, as 8080:{match['vm']}:{far}")
    if reverse and udp:
        raise ValueError(f"{text!r}: the agent does not listen for UDP")
    far = far if is_path else str(int(far))
    return Forward(int(match["vm"][2:]), int(local), far, udp, reverse, host)
