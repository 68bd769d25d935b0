"""Meters of an Open vSwitch bridge over its management socket: ``ovs-ofctl`` takes one process for each.

OpenFlow 1.5, sections 7.1.1 (header) and 7.3.4.4 (meter modification).
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Sequence
from pathlib import Path

from pvc.errors import HostError

_VERSION = 6
_HELLO, _ERROR, _ECHO_REQUEST, _ECHO_REPLY, _METER_MOD, _BARRIER_REQUEST, _BARRIER_REPLY = 0, 1, 2, 3, 29, 20, 21
_ADD, _MODIFY, _DELETE = 0, 1, 2
_KBPS, _BURST = 1, 4
_DROP = 1
_METER_MOD_FAILED, _EXISTS, _UNKNOWN = 12, 1, 3
_HEADER = struct.Struct("!BBHI")
_METER = struct.Struct("!HHI")
_BAND = struct.Struct("!HHIIxxxx")
_TIMEOUT_S = 10.0
_MIN_BURST_KBIT = 2048  # 256 KiB: four of the largest frames that a guest hands over in one piece


def ensure(path: Path, limits: Sequence[tuple[int, int]]) -> None:
    """Meters (id, kbit/s) that drop what is more, made or changed.

    :raise HostError: ovs-vswitchd does not answer or refuses one.
    """
    bodies = []
    for meter, rate in limits:
        burst = max(_MIN_BURST_KBIT, rate // 50)
        band = _BAND.pack(_DROP, _BAND.size, rate, burst)
        # One of the two is an error, which one depends on what is there.
        bodies += [_METER.pack(command, _KBPS | _BURST, meter) + band for command in (_MODIFY, _ADD)]
    _send(path, bodies)


def remove(path: Path, ids: Sequence[int]) -> None:
    """Take meters away. Absent is fine.

    :raise HostError: ovs-vswitchd does not answer.
    """
    _send(path, [_METER.pack(_DELETE, 0, meter) for meter in ids])


def _send(path: Path, bodies: Sequence[bytes]) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as link:
        link.settimeout(_TIMEOUT_S)
        try:
            link.connect(os.fspath(path))
            link.sendall(_message(_HELLO, b"") + b"".join(_message(_METER_MOD, body) for body in bodies))
            link.sendall(_message(_BARRIER_REQUEST, b""))
            with link.makefile("rb") as stream:
                while True:
                    _, kind, length, _ = _HEADER.unpack(stream.read(_HEADER.size))
                    body = stream.read(length - _HEADER.size)
                    if kind == _BARRIER_REPLY:
                        return
                    if kind == _ECHO_REQUEST:
                        link.sendall(_message(_ECHO_REPLY, body))
                    if kind == _ERROR and body[:4] not in _EXPECTED:
                        raise HostError(f"Open vSwitch refuses a meter (OpenFlow error {body[:4].hex()})")
        except (OSError, struct.error) as err:
            raise HostError("cannot set meters of Open vSwitch") from err


_EXPECTED = tuple(struct.pack("!HH", _METER_MOD_FAILED, code) for code in (_EXISTS, _UNKNOWN))


def _message(kind: int, body: bytes) -> bytes:
    return _HEADER.pack(_VERSION, kind, _HEADER.size + len(body), 1) + body
