"""Files and trees to and from guests, by their agents: one reading of what is sent, however many VMs take it."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from pvc.channel.frames import ProtocolError, find_hint, printable
from pvc.errors import GuestError, PvcError, UsageError
from pvc.ops.agents import Agents, Stream
from pvc.ops.control import Control
from pvc.ops.loop import Loop
from pvc.ops.orders import is_vm_set
from pvc.ops.status import find_node, parse_vms
from pvc.ops.treefiles import TreeWriter, measure, read_tree, top_name

_PENDING = 1 << 20
_MAX_SAID = 1 << 16
_SHOWN = 5
_PLACE = re.compile(r"(?P<vms>[^/:]+):(?P<path>.*)", re.DOTALL)

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Place:
    """A path; ``vms`` empty: here."""

    path: str
    vms: tuple[int, ...] = ()


@dataclass
class Copied:
    """What became of the copies to or from one VM."""

    rank: int
    node: str
    error: str | None = None
    hint: str | None = None
    bytes: int = 0
    files: int = 0
    problems: list[str] = field(default_factory=list)


@dataclass
class Copies:
    """What became of a copy: ``vms`` of each VM, ``complaints`` of what could not be read here."""

    vms: list[Copied]
    complaints: list[str] = field(default_factory=list)

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


def copy(
    control: Control, words: Sequence[str], user: str, progress: Progress | None = None, timeout_s: float | None = None
) -> Copies:
    """Copy sources to a destination, the last word; ``progress`` is told of so many bytes more.

    :raise UsageError: they are not on different sides, or a source is not there.
    :raise GuestError: the time ran out; what was not complete is gone.
    :raise PvcError: the destination cannot be written.
    """
    sources, target = parse_copy(words, control.record.placement.count)
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    with Loop((), lambda _: None) as loop:
        copier = _Copier(control, loop, user, progress or (lambda _: None), deadline)
        try:
            if not target.vms:
                return Copies(copier.copy_out(sources, target.path))
            for source in sources:
                top_name(source.path)
            return copier.copy_in(sources, target)
        except TimeoutError:
            raise GuestError(f"the copy did not end within {timeout_s:g} s") from None


def count_bytes(words: Sequence[str], count: int) -> int:
    """How many bytes a copy to VMs will send, about; 0: it is one from VMs.

    :raise UsageError: as ``copy``.
    """
    sources, target = parse_copy(words, count)
    return sum(measure(source.path) for source in sources) * len(target.vms)


def parse_place(text: str, count: int) -> Place:
    """``vm0:/path``, ``vm[0-3]:path`` or a path here.

    :raise UsageError: these VMs are not of the cluster.
    """
    match = _PLACE.fullmatch(text)
    if match is None or not is_vm_set(match["vms"]):
        return Place(text)
    return Place(match["path"], parse_vms([match["vms"]], count))


def parse_copy(words: Sequence[str], count: int) -> tuple[list[Place], Place]:
    """Sources and the destination.

    :raise UsageError: they are not on different sides.
    """
    if len(words) < 2:
        raise UsageError("say what to copy and where to", hint="pvc cp FILE vm0:/path, or pvc cp vm0:/path FILE")
    *sources, target = [parse_place(word, count) for word in words]
    if target.vms and any(source.vms for source in sources):
        raise UsageError("one side of a copy is here", hint="copy it here first, then to the other VM")
    if not target.vms and not all(source.vms for source in sources):
        raise UsageError("one side of a copy is in a VM", hint="write it as vm0:/path; a file called so as ./vm0:path")
    return sources, target


class _Upload(Stream):
    """One VM that takes a tree."""

    def __init__(self, upload: _Uploads) -> None:
        super().__init__()
        self.said = bytearray()
        self._upload = upload

    def on_data(self, data: bytes, second: bool) -> None:
        if second:
            self.said += data[: max(0, _MAX_SAID - len(self.said))]

    def on_moved(self) -> None:
        self._upload.feed()

    def on_close(self, words: dict[str, str]) -> None:
        del words
        self._upload.feed()


class _Uploads:
    """One tree to several VMs."""

    def __init__(self, chunks: Iterator[bytes], progress: Progress) -> None:
        self.streams: list[_Upload] = []
        self._chunks = chunks
        self._progress = progress
        self._ended = False
        self._feeding = False

    def feed(self) -> None:
        """Read on while all VMs that still take it have room."""
        if self._feeding:
            return
        self._feeding = True
        try:
            while not self._ended:
                live = [stream for stream in self.streams if not stream.closed]
                if not live or any(stream.pending >= _PENDING for stream in live):
                    return
                chunk = next(self._chunks, None)
                for stream in live:
                    if chunk is None:
                        stream.end()
                    else:
                        stream.send(chunk)
                if chunk is None:
                    self._ended = True
                else:
                    self._progress(len(chunk) * len(live))
        finally:
            self._feeding = False


class _Download(Stream):
    """One VM that sends a tree."""

    def __init__(self, writer: TreeWriter, progress: Progress) -> None:
        super().__init__()
        self.said = bytearray()
        self.problem: PvcError | None = None
        self.writer = writer
        self._progress = progress

    def on_data(self, data: bytes, second: bool) -> None:
        if second:
            self.said += data[: max(0, _MAX_SAID - len(self.said))]
            return
        if self.problem is not None:
            return
        before = self.writer.bytes
        try:
            self.writer.feed(data)
        except ProtocolError as err:
            self.problem = PvcError(f"what vm{self.rank} sent is refused: {err}")
        except PvcError as err:
            self.problem = err
        if self.problem is not None:
            self.close()
        self._progress(self.writer.bytes - before)


@dataclass
class _Copier:
    """What all copies of one command share."""

    control: Control
    loop: Loop
    user: str
    progress: Progress
    deadline: float | None

    def copy_in(self, sources: Sequence[Place], target: Place) -> Copies:
        """Local files to VMs."""
        done = Copies([Copied(rank, find_node(self.control.record, rank)) for rank in target.vms])
        words = [("op", "put"), ("path", target.path or "."), ("user", self.user)]
        if len(sources) > 1:
            words.append(("into", "1"))
        with Agents(self.control, self.loop, len(target.vms)) as agents:
            _connect(agents, done.vms)
            for source in sources:
                uploads = _Uploads(read_tree(source.path, done.complaints.append), self.progress)
                left = [each for each in done.vms if each.error is None]
                for result in left:
                    stream = _Upload(uploads)
                    agents.open(result.rank, words, stream)
                    uploads.streams.append(stream)
                uploads.feed()
                self._wait(uploads.streams)
                for result, stream in zip(left, uploads.streams, strict=True):
                    _judge(result, stream, bytes(stream.said))
        return done

    def copy_out(self, sources: Sequence[Place], target: str) -> list[Copied]:
        """Files of VMs here; of several VMs each gets a directory of its name in ``target``."""
        ranks = sorted({rank for source in sources for rank in source.vms})
        results = {rank: Copied(rank, find_node(self.control.record, rank)) for rank in ranks}
        with Agents(self.control, self.loop, len(ranks)) as agents:
            _connect(agents, results.values())
            for source in sources:
                streams: list[_Download] = []
                try:
                    for rank in (rank for rank in source.vms if results[rank].error is None):
                        place, into = _own_place(target, rank, alone=len(ranks) == 1, several=len(sources) > 1)
                        stream = _Download(TreeWriter(place, into=into), self.progress)
                        streams.append(stream)
                        words = [("op", "get"), ("path", source.path or "."), ("user", self.user)]
                        agents.open(rank, words, stream)
                    self._wait(streams)
                finally:
                    for stream in streams:
                        stream.writer.close()
                for stream in streams:
                    _judge_download(results[stream.rank], stream)
        return list(results.values())

    def _wait(self, streams: Sequence[Stream]) -> None:
        """:raise TimeoutError: the time ran out."""
        left_s = None if self.deadline is None else max(0.0, self.deadline - time.monotonic())
        if not self.loop.run_until(lambda: all(stream.closed for stream in streams), timeout_s=left_s):
            raise TimeoutError


def _own_place(target: str, rank: int, *, alone: bool, several: bool) -> tuple[str, bool]:
    if alone:
        return target, several
    place = os.path.join(target, f"vm{rank}")
    os.makedirs(place, exist_ok=True)
    return place, True


def _connect(agents: Agents, results: Iterable[Copied]) -> None:
    broken = agents.connect([result.rank for result in results])
    for result in results:
        err = broken.get(result.node)
        if err is not None:
            result.error, result.hint = str(err), err.find_hint()


def _judge(result: Copied, stream: Stream, said: bytes) -> None:
    words = stream.result or {}
    lines = [printable(line) for line in said.decode(errors="replace").splitlines()]
    lines = [line.removeprefix("pvc-agent: ") for line in lines]
    if "error" in words:
        result.error, result.hint = printable(words["error"]), find_hint(words)
    elif words.get("exit") != "0":
        result.error = "; ".join(lines[:5]) or "the agent could not copy it"
        if "No space left" in result.error:
            result.hint = f"free space in vm{result.rank}; nothing of what was not complete is left there"
    else:
        result.problems += lines


def _judge_download(result: Copied, stream: _Download) -> None:
    result.bytes += stream.writer.bytes
    result.files += stream.writer.files
    result.problems += stream.writer.problems
    if stream.problem is not None:
        result.error, result.hint = str(stream.problem), stream.problem.find_hint()
        return
    _judge(result, stream, bytes(stream.said))
    if result.error is None and not stream.writer.complete:
        result.error = "the copy is not complete"
