# SPDX-License-Identifier: Apache-2.0
"""Taps by ioctl(2) on /dev/net/tun (kernel: Documentation/networking/tuntap.rst).

They live in the namespace of the calling thread; see ``netns.run_inside``.

A tap without an owner is anybody's who may open /dev/net/tun, which is everybody where udev made it (0666): whoever
names a free one has its frames. So each is root's before it can be free. Whoever is given a descriptor may give the
device to another owner or group (TUNSETOWNER asks for no capability), so it is taken back with each descriptor.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from pathlib import Path

from pvc.errors import HostError

DEVICE = Path("/dev/net/tun")
_TUNSETIFF = 0x400454CA
_TUNSETPERSIST = 0x400454CB
_TUNSETOWNER = 0x400454CC
_TUNSETGROUP = 0x400454CE
_IFF_TAP = 0x0002
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000


def ensure(name: str, *, vnet_header: bool = True) -> None:
    """Make a persistent tap of that name, which only root attaches to, unless it exists.

    :raise HostError: /dev/net/tun is missing or refuses.
    """
    fd = _attach(name, vnet_header=vnet_header)
    try:
        # Until it is closed this descriptor is the only queue that there can be.
        fcntl.ioctl(fd, _TUNSETPERSIST, 1)
    finally:
        os.close(fd)


def open_queue(name: str, *, vnet_header: bool = True) -> int:
    """A descriptor on an existing tap; whoever holds it sends and receives its frames.

    With ``vnet_header`` each has a virtio-net header in front, and may be larger than the MTU.

    :raise HostError: another process holds the tap, or it does not exist.
    """
    if not exists(name):
        raise HostError(f"there is no tap {name}")
    return _attach(name, vnet_header=vnet_header)


def exists(name: str) -> bool:
    """Whether this namespace has a device of that name."""
    # /sys shows the namespace it was mounted in, not the thread's: ask the kernel.
    try:
        return socket.if_nametoindex(name) > 0
    except OSError:
        return False


def _attach(name: str, *, vnet_header: bool) -> int:
    try:
        fd = os.open(DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as err:
        raise HostError(f"cannot open {DEVICE}", hint="load the kernel module tun") from err
    try:
        flags = _IFF_TAP | _IFF_NO_PI | (_IFF_VNET_HDR if vnet_header else 0)
        request = struct.pack("16sH22x", name.encode(), flags)
        fcntl.ioctl(fd, _TUNSETIFF, request)
        fcntl.ioctl(fd, _TUNSETOWNER, 0)
        fcntl.ioctl(fd, _TUNSETGROUP, 0)
    except OSError as err:
        os.close(fd)
        if err.errno == errno.EBUSY:
            raise HostError(f"tap {name} is held by another process", hint="the cluster runs already") from err
        raise HostError(f"cannot attach to tap {name}") from err
    return fd
