# SPDX-License-Identifier: Apache-2.0
"""Meters of an Open vSwitch bridge over its management socket: ``ovs-ofctl`` takes one process for each.

OpenFlow 1.5, section 7.3.4.4 (meter modification).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

from pvc.host import ofsocket

_METER_MOD = 29
_ADD, _MODIFY, _DELETE = 0, 1, 2
_KBPS, _BURST = 1, 4
_DROP = 1
_METER_MOD_FAILED, _EXISTS, _UNKNOWN = 12, 1, 3
_EXPECTED = tuple(struct.pack("!HH", _METER_MOD_FAILED, code) for code in (_EXISTS, _UNKNOWN))
_METER = struct.Struct("!HHI")
_BAND = struct.Struct("!HHIIxxxx")
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
    ofsocket.send(path, [(_METER_MOD, body) for body in bodies], "meters", _EXPECTED)
