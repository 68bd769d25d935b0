# SPDX-License-Identifier: Apache-2.0
"""OpenFlow over the management socket of an Open vSwitch bridge: what ``ovs-ofctl`` takes a process for each time.

OpenFlow 1.5, sections 7.1.1 (header) and 7.3.2 (switch configuration).
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

from pvc.errors import HostError

_VERSION = 6
_HELLO, _ERROR, _ECHO_REQUEST, _ECHO_REPLY, _SET_CONFIG, _BARRIER_REQUEST, _BARRIER_REPLY = 0, 1, 2, 3, 9, 20, 21
_HEADER = struct.Struct("!BBHI")
_CONFIG = struct.Struct("!HH")
_FRAG_NX_MATCH, _MISS_SEND_BYTES = 3, 128
_TIMEOUT_S = 10.0


def match_fragments(path: Path) -> None:
    """Have flows see the ports of a datagram's first fragment.

    Otherwise they are 0 in all fragments (ovs-ofctl(8), set-frags): whoever is to say nothing from a port would say it
    in two pieces. ovs-vswitchd forgets it when it ends.

    :raise HostError: ovs-vswitchd does not answer or refuses.
    """
    send(path, [(_SET_CONFIG, _CONFIG.pack(_FRAG_NX_MATCH, _MISS_SEND_BYTES))], "how fragments are matched")


def send(path: Path, messages: Sequence[tuple[int, bytes]], what: str, expected: Iterable[bytes] = ()) -> None:
    """Send messages (type, body) and wait until they are done.

    :raise HostError: ovs-vswitchd does not answer, or with an error whose type and code are not among ``expected``.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as link:
        link.settimeout(_TIMEOUT_S)
        try:
            link.connect(os.fspath(path))
            link.sendall(_message(_HELLO, b"") + b"".join(_message(kind, body) for kind, body in messages))
            link.sendall(_message(_BARRIER_REQUEST, b""))
            with link.makefile("rb") as stream:
                while True:
                    _, kind, length, _ = _HEADER.unpack(stream.read(_HEADER.size))
                    body = stream.read(length - _HEADER.size)
                    if kind == _BARRIER_REPLY:
                        return
                    if kind == _ECHO_REQUEST:
                        link.sendall(_message(_ECHO_REPLY, body))
                    if kind == _ERROR and body[:4] not in expected:
                        raise HostError(f"Open vSwitch refuses {what} (OpenFlow error {body[:4].hex()})")
        except (OSError, struct.error) as err:
            raise HostError(f"cannot set {what} of Open vSwitch") from err


def _message(kind: int, body: bytes) -> bytes:
    return _HEADER.pack(_VERSION, kind, _HEADER.size + len(body), 1) + body
