# SPDX-License-Identifier: Apache-2.0
"""Pure parsers from text to values.

Each raises ``ValueError`` with a message that names the text and what was expected; the caller adds
where the text came from.
"""

from __future__ import annotations

import ipaddress
import re

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgtp]?)(i?b)?", re.ASCII | re.IGNORECASE)
_UNITS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)?", re.ASCII)
_SECONDS = {"ms": 0.001, None: 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
# No disk and no time that anybody means; floats end somewhere, too.
_MAX_SIZE, _MAX_SECONDS = 1 << 63, 1e12
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", re.ASCII)
_MAC_PREFIX = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){2}", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", re.ASCII)
_CPU_RANGE = re.compile(r"(\d+)(?:-(\d+))?", re.ASCII)


def parse_size(text: str, *, default_unit: str = "") -> int:
    """Bytes of "512M", "1.5G", "4096": 1024-based; ``default_unit`` applies when none is written.

    :raise ValueError: not a size.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size such as 512M or 4G")
    unit = (match[2] or default_unit).lower()
    size = float(match[1]) * 1024 ** _UNITS[unit]
    if size >= _MAX_SIZE:
        raise ValueError(f"{_short(text)} is larger than any size")
    return int(size)


def parse_bool(text: str) -> bool:
    """The truth of yes/no, true/false, on/off, 1/0.

    :raise ValueError: anything else.
    """
    lowered = text.strip().lower()
    if lowered in {"yes", "true", "on", "1"}:
        return True
    if lowered in {"no", "false", "off", "0"}:
        return False
    raise ValueError(f"{text!r} is neither yes nor no")


def parse_duration(text: str) -> float:
    """Seconds of "90", "1.5s", "200ms", "5m", "2h", "1d".

    :raise ValueError: not a duration.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a duration such as 90s or 5m")
    seconds = float(match[1]) * _SECONDS[match[2]]
    if seconds >= _MAX_SECONDS:
        raise ValueError(f"{_short(text)} is longer than any duration")
    return seconds


def parse_count(text: str, most: int) -> int | None:
    """The number that decimal digits of somebody else mean; None: they are none, or mean more than ``most``.

    int() refuses some thousands of digits, and takes digits of other scripts.
    """
    if not text.isascii() or not text.isdigit() or len(text) > len(str(most)):
        return None
    number = int(text)
    return number if number <= most else None


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:40]}...")


def expand_home(path: str, homedir: str) -> str:
    """A path as a shell would have it that saw its ~/; ~ of others stays, for their homes need not be known here."""
    return homedir.rstrip("/") + path[1:] if path == "~" or path.startswith("~/") else path


def parse_name(text: str) -> str:
    """A name that is safe in file names, device properties and log lines.

    :raise ValueError: empty, too long, or with other characters than letters, digits, "_", "." and "-".
    """
    if _NAME.fullmatch(text) is None:
        raise ValueError(f"{text!r} is not a name (letters, digits, '_', '.', '-'; at most 63)")
    return text


def parse_mac(text: str) -> str:
    """A unicast MAC address in lower case.

    :raise ValueError: not a MAC address, or a multicast one.
    """
    lowered = text.lower()
    if _MAC.fullmatch(lowered) is None:
        raise ValueError(f"{text!r} is not a MAC address")
    if int(lowered[:2], 16) & 1:
        raise ValueError(f"{text!r} is a multicast address")
    return lowered


def parse_mac_prefix(text: str) -> str:
    """The first three bytes of unicast MAC addresses, in lower case.

    :raise ValueError: not such a prefix.
    """
    lowered = text.lower()
    if _MAC_PREFIX.fullmatch(lowered) is None or int(lowered[:2], 16) & 1:
        raise ValueError(f"{text!r} is not a MAC prefix such as 52:54:00")
    return lowered


def parse_network(text: str) -> ipaddress.IPv4Network:
    """An IPv4 network in CIDR notation without host bits.

    :raise ValueError: not a network.
    """
    try:
        return ipaddress.IPv4Network(text)
    except ValueError as err:
        raise ValueError(f"{text!r} is not an IPv4 network such as 10.200.0.0/16 ({err})") from None


def parse_cpu_list(text: str) -> tuple[int, ...]:
    """CPUs of "0-3,8" in ascending order, as in cpuset(7) "List format".

    :raise ValueError: malformed or descending.
    """
    cpus: set[int] = set()
    for part in text.strip().split(",") if text.strip() else []:
        match = _CPU_RANGE.fullmatch(part.strip())
        if match is None:
            raise ValueError(f"{text!r} is not a CPU list such as 0-3,8")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last > 1 << 16:
            raise ValueError(f"{text!r} is not a CPU list: {part!r} runs backwards or too far")
        cpus.update(range(first, last + 1))
    return tuple(sorted(cpus))


def parse_cpus_per_node(text: str) -> tuple[int, ...]:
    """CPUs of each node, in node order, of Slurm's "3(x2),1" (sbatch(1), SLURM_JOB_CPUS_PER_NODE).

    :raise ValueError: malformed, or more than 65,536 nodes.
    """
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,6})(?:\(x(\d{1,6})\))?", part.strip(), re.ASCII)
        if match is None:
            raise ValueError(f"{text!r} is not Slurm's CPUs per node")
        counts.extend([int(match[1])] * int(match[2] or 1))
        if len(counts) > 65536:
            raise ValueError("more than 65536 nodes")
    return tuple(counts)
