# SPDX-License-Identifier: Apache-2.0
"""What a copy is asked for and what becomes of it: places here and in VMs, and a result for each VM."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pvc.errors import GuestError, UsageError
from pvc.ops.orders import is_vm_set
from pvc.ops.status import parse_vms
from pvc.ops.treefiles import measure, top_name

_SHOWN = 5
_STREAM = "-"
_PLACE = re.compile(r"(?P<vms>[^/:]+):(?P<path>.*)", re.DOTALL)

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Place:
    """A path; ``vms`` empty: here, and "-" is standard input or output."""

    path: str
    vms: tuple[int, ...] = ()

    @property
    def is_stream(self) -> bool:
        """Whether it is one of our standard streams."""
        return self.path == _STREAM and not self.vms


@dataclass
class Copied:
    """What became of the copies to or from one VM. ``bytes``: of files, without their holes."""

    rank: int
    node: str
    error: str | None = None
    hint: str | None = None
    bytes: int = 0
    files: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class Copies:
    """What became of a copy: ``vms`` of each VM, ``complaints`` of what could not be read here, ``notes`` of what
    changed meanwhile. Between VMs it is those that were copied to.
    """

    vms: list[Copied]
    complaints: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        """Whether anything was not copied."""
        return bool(self.complaints) or any(each.error is not None or each.problems for each in self.vms)

    def raise_failed(self) -> None:
        """:raise GuestError: something was not copied."""
        if not self.failed:
            return
        texts = list(self.complaints)
        for each in self.vms:
            name = f"vm{each.rank}"
            said = [*([each.error] if each.error is not None else []), *each.problems]
            texts += [text if name in text else f"{name}: {text}" for text in said]
        more = f"; and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
        hint = next((each.hint for each in self.vms if each.hint is not None), None)
        raise GuestError("; ".join(texts[:_SHOWN]) + more, hint=hint)


def count_bytes(words: Sequence[str], count: int) -> int:
    """How many bytes a copy to VMs will send, about; 0: nobody knows.

    :raise UsageError: as ``copy``.
    """
    sources, target = parse_copy(words, count)
    if any(source.vms or source.is_stream for source in sources):
        return 0
    return sum(measure(source.path) for source in sources) * len(target.vms)


def parse_place(text: str, count: int) -> Place:
    """``vm0:/path``, ``vm[0-3]:path`` or a path here.

    :raise UsageError: these VMs are not of the cluster.
    """
    match = _PLACE.fullmatch(text)
    if match is None or not is_vm_set(match["vms"]):
        if not text:
            raise UsageError("a place without a name", hint="here is written as .")
        return Place(text)
    # As everywhere: the user's home. A file that is called so is written ./~.
    path = re.sub(r"\A~(?:/+|\Z)", "", match["path"])
    return Place(path, parse_vms([match["vms"]], count))


def asked_name(path: str, rank: int) -> str:
    """What a copy of a guest's ``path`` is called here, by the request alone: "vm0" where that has no name, as "..".

    A guest that chose the name would choose which of our files it replaces.
    """
    name = posixpath.basename(posixpath.normpath(path))
    return f"vm{rank}" if name in ("", ".", "..") else name


def parse_copy(words: Sequence[str], count: int) -> tuple[list[Place], Place]:
    """Sources and the destination.

    :raise UsageError: they are not on different sides.
    """
    if len(words) < 2:
        raise UsageError("say what to copy and where to", hint="pvc cp FILE vm0:/path, or pvc cp vm0:/path FILE")
    *sources, target = [parse_place(word, count) for word in words]
    if not target.vms and not all(source.vms for source in sources):
        raise UsageError("one side of a copy is in a VM", hint="write it as vm0:/path; a file called so as ./vm0:path")
    if target.is_stream and len({rank for source in sources for rank in source.vms}) > 1:
        raise UsageError("standard output takes the files of one VM", hint="name a directory as the destination")
    if sum(source.is_stream for source in sources) and len(sources) > 1:
        raise UsageError("standard input is a source of its own", hint="copy the others by a second pvc cp")
    for source in sources:
        if not source.vms and not source.is_stream:
            top_name(source.path)
    return sources, target
