# SPDX-License-Identifier: Apache-2.0
"""Whole Ethernet frames by packet(7) sockets, in the namespace where each is opened."""

from __future__ import annotations

import ctypes
import socket
import struct

from pvc.errors import HostError
from pvc.host import netns

_ETH_P_ALL = 3
_SOL_PACKET, _PACKET_IGNORE_OUTGOING = 263, 23
_SO_ATTACH_FILTER = 26
_BUFFER = 4 << 20
# linux/filter.h: BPF_LD | BPF_H | BPF_ABS, BPF_LD | BPF_W | BPF_ABS, BPF_JMP | BPF_JEQ | BPF_K, BPF_RET | BPF_K
_LD_HALF, _LD_WORD, _JUMP_EQUAL, _RETURN = 0x28, 0x20, 0x15, 0x06


def open_sender(place: tuple[str | None, str]) -> socket.socket:
    """A socket whose frames leave by the device (namespace, name).

    :raise HostError: there is no such device.
    """
    # Protocol 0: it receives nothing.
    return _open(place, 0, b"", outgoing=False)


def open_listener(place: tuple[str | None, str], ethertype: int, start: bytes, *, outgoing: bool) -> socket.socket:
    """A socket that hears frames of an EtherType whose payload begins with ``start`` (whole words).

    They are heard before a bridge takes them. ``outgoing``: those that are sent to the device, too.

    :raise HostError: there is no such device.
    """
    checks = [(_LD_HALF, 12, ethertype)]
    checks += [(_LD_WORD, 14 + at, int.from_bytes(start[at : at + 4], "big")) for at in range(0, len(start), 4)]
    code = b""
    for number, (load, offset, value) in enumerate(checks):
        past_return = 2 * (len(checks) - number) - 1
        code += struct.pack("=HBBI", load, 0, 0, offset) + struct.pack("=HBBI", _JUMP_EQUAL, 0, past_return, value)
    code += struct.pack("=HBBI", _RETURN, 0, 0, 0xFFFF) + struct.pack("=HBBI", _RETURN, 0, 0, 0)
    return _open(place, _ETH_P_ALL, code, outgoing=outgoing)


def _open(place: tuple[str | None, str], protocol: int, code: bytes, *, outgoing: bool) -> socket.socket:
    namespace, device = place

    def make() -> socket.socket:
        # It hears nothing before it is bound: the filter is there first.
        link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0)
        try:
            if code:
                text = ctypes.create_string_buffer(code, len(code))
                program = struct.pack("HL", len(code) // 8, ctypes.addressof(text))
                link.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
                link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
                if not outgoing:
                    link.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
            link.bind((device, protocol))
        except BaseException:
            link.close()
            raise
        return link

    try:
        return netns.run_inside(namespace, make)
    except OSError as err:
        raise HostError(f"cannot use the device {device}") from err
