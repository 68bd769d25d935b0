# SPDX-License-Identifier: Apache-2.0
"""What a user asks for, and the part of it that root may know."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pvc.parse import parse_name

MAX_VMS = 65536
MAX_CPUS = 4096
MAX_SIZES = 64
_REQUEST = re.compile(
    r"1(?:;cpus=(\d{1,4})|;sizes=([\d:,]{3,400}))?(;gres)?(;pack)?(;whole)?;([A-Za-z0-9_.:,-]{3,900})", re.ASCII
)
_SIZE = re.compile(r"(\d{1,5}):(\d{1,4})", re.ASCII)
_PART = re.compile(r"([A-Za-z0-9_.-]{1,63}):(\d{1,5})", re.ASCII)


@dataclass(frozen=True)
class DefinitionItem:
    """``count`` VMs of one template."""

    template: str
    count: int


@dataclass(frozen=True)
class SetRequest:
    """``count`` VMs that need the networks and devices of one resource set; ranks are contiguous."""

    resource_set: str
    count: int


@dataclass(frozen=True)
class Size:
    """Contiguous ranks that are asked for together: ``count`` VMs of ``cpus`` cores each.

    ``cpus`` None means: as many for each VM as the allocation allows.
    """

    count: int
    cpus: int | None = None


@dataclass(frozen=True)
class Request:
    """The only thing root learns of a user's cluster: resource sets, counts and cores of a VM.

    ``cpus`` None means: as many for each VM as the allocation allows. ``sizes``: in the order of the ranks, where
    not all VMs are asked for in the same way; each is a component of a heterogeneous job. Without them, all are one.
    ``pack``: nodes are filled one after the other, as Slurm's --distribution=Pack does with tasks.
    ``whole``: the job has whole nodes, so their cores say nothing of how many VMs Slurm means for each.
    ``gres``: there are networks of generic resources among those of the sets, so Slurm has to be asked who has which.
    """

    sets: tuple[SetRequest, ...]
    cpus: int | None = None
    sizes: tuple[Size, ...] = ()
    gres: bool = False
    pack: bool = False
    whole: bool = False

    @property
    def count(self) -> int:
        """VMs in all."""
        return sum(item.count for item in self.sets)

    def list_sizes(self) -> tuple[Size, ...]:
        """The sizes, of which there is one at least."""
        return self.sizes or (Size(self.count, self.cpus),)

    def encode(self) -> str:
        """The text form, as SPANK_PVC_REQUEST carries it: ``1;cpus=2;nat:4,lan:1``, ``1;sizes=1:8,4:2;nat:5``,
        ``1;gres;gpu:2``, ``1;cpus=1;pack;nat:4``.

        0 cores of a size: as many as the allocation allows.
        """
        cpus = f";cpus={self.cpus}" if self.cpus is not None else ""
        if self.sizes:
            cpus = ";sizes=" + ",".join(f"{size.count}:{size.cpus or 0}" for size in self.sizes)
        flags = (";gres" if self.gres else "") + (";pack" if self.pack else "") + (";whole" if self.whole else "")
        return f"1{cpus}{flags};" + ",".join(f"{item.resource_set}:{item.count}" for item in self.sets)


def decode_request(text: str) -> Request:
    """The request that ``Request.encode`` wrote; hostile text is expected here.

    :raise ValueError: malformed, empty, or beyond MAX_VMS, MAX_CPUS or MAX_SIZES.
    """
    match = _REQUEST.fullmatch(text)
    if match is None:
        raise ValueError("malformed request")
    sets: list[SetRequest] = []
    for part in match[6].split(","):
        found = _PART.fullmatch(part)
        if found is None:
            raise ValueError(f"malformed request at {part[:40]!r}")
        sets.append(SetRequest(parse_name(found[1]), int(found[2])))
    cpus = int(match[1]) if match[1] else None
    request = Request(tuple(sets), cpus, _decode_sizes(match[2]), *(flag is not None for flag in match.groups()[2:5]))
    if any(item.count < 1 for item in sets) or request.count > MAX_VMS:
        raise ValueError(f"a cluster has 1 to {MAX_VMS} VMs")
    if cpus is not None and not 1 <= cpus <= MAX_CPUS:
        raise ValueError(f"a VM has 1 to {MAX_CPUS} cores")
    if request.sizes and sum(size.count for size in request.sizes) != request.count:
        raise ValueError("sizes and resource sets are of different numbers of VMs")
    return request


def _decode_sizes(text: str | None) -> tuple[Size, ...]:
    if text is None:
        return ()
    sizes: list[Size] = []
    for part in text.split(","):
        found = _SIZE.fullmatch(part)
        if found is None:
            raise ValueError(f"malformed size at {part[:40]!r}")
        sizes.append(Size(int(found[1]), int(found[2]) or None))
    if len(sizes) > MAX_SIZES or any(size.count < 1 or (size.cpus or 1) > MAX_CPUS for size in sizes):
        raise ValueError(f"a cluster has 1 to {MAX_SIZES} sizes of VMs with at most {MAX_CPUS} cores")
    return tuple(sizes)


def parse_definition(text: str) -> tuple[DefinitionItem, ...]:
    """``template[:count][,template[:count]…]``.

    :raise ValueError: empty, malformed, or a count outside 1..MAX_VMS.
    """
    items: list[DefinitionItem] = []
    for part in text.split(","):
        name, colon, count_text = part.strip().partition(":")
        if not name:
            raise ValueError(f"{text!r} is not a definition such as debian:4 or web:2,db:1")
        try:
            parse_name(name)
        except ValueError:
            raise ValueError(f"{name!r} in {text!r} is not a template's name") from None
        if colon and not (count_text.isascii() and count_text.isdigit()):
            raise ValueError(f"{count_text!r} in {text!r} is not a number of VMs")
        count = int(count_text) if colon else 1
        if not 1 <= count <= MAX_VMS:
            raise ValueError(f"{count} VMs of {name}: a cluster has 1 to {MAX_VMS} VMs")
        items.append(DefinitionItem(name, count))
    if sum(item.count for item in items) > MAX_VMS:
        raise ValueError(f"{text!r}: a cluster has at most {MAX_VMS} VMs")
    return tuple(items)
