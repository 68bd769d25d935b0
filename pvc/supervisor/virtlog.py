# SPDX-License-Identifier: Apache-2.0
"""What QEMU says where libvirt starts it: a log of the domain, in which libvirt writes, too."""

from __future__ import annotations

import os
import re
from pathlib import Path

_LOG_BYTES = 8192
_SHOWN = 800
# libvirt's own lines, and QEMU's command line, which is one line continued by backslashes.
_TIMED = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+\+0000: ?")
_OWN = ("starting up", "shutting down", "Domain id=")
_ENDED_BY_LIBVIRT = re.compile(r"terminating on signal 15 from pid \d+ \(libvirtd\)")


def read_said(log: Path) -> str:
    """What QEMU wrote last into a domain's log, in one line."""
    try:
        with log.open("rb") as stream:
            stream.seek(0, os.SEEK_END)
            stream.seek(max(0, stream.tell() - _LOG_BYTES))
            text = stream.read().decode(errors="replace")
    except OSError:
        return ""
    said: list[str] = []
    continued = False
    for line in text.splitlines():
        plain = _TIMED.sub("", line).strip()
        own = plain.startswith(_OWN)
        if own and plain.startswith("starting up"):
            said.clear()  # of an earlier start
        own = own or _ENDED_BY_LIBVIRT.search(plain) is not None
        if plain and not own and not continued and not plain.endswith("\\"):
            said.append(plain)
        continued = line.endswith("\\")
    return "; ".join(said[-4:])[-_SHOWN:]
