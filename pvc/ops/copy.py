# SPDX-License-Identifier: Apache-2.0
"""Files and trees to and from guests, by their agents: one reading of what is sent, however many VMs take it."""

from __future__ import annotations

import fnmatch
import os
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import zip_longest

from pvc.errors import GuestError, GuestTimeoutError, HostError
from pvc.model.failure import Failure, is_lost
from pvc.ops.agents import Agents, Stream, ask
from pvc.ops.control import Control
from pvc.ops.copied import Copied, Copies, Place, Progress, asked_name, parse_copy
from pvc.ops.copystreams import Download, FileUploads, InputUploads, Source, Speaking, Upload, Uploads, Writer
from pvc.ops.loop import Loop
from pvc.ops.status import find_node
from pvc.ops.treefiles import Sent, Taken, TreeWriter, read_tree
from pvc.ops.treeoutput import OutputWriter
from pvc.ops.treepass import TreePass
from pvc.texts import clean_lines

_GLOB_S = 60.0
_MOST_MATCHES = 10_000


def copy(
    control: Control,
    words: Sequence[str],
    user: str,
    progress: Progress | None = None,
    timeout_s: float | None = None,
    *,
    links: bool = False,
) -> Copies:
    """Copy sources to a destination, the last word; ``progress`` is told of so many bytes more.

    ``links``: of what comes from VMs also symbolic links that lead out of it.

    :raise UsageError: they are not on different sides, or a source is not there.
    :raise GuestTimeoutError: the time ran out; what was not complete is gone. ``gathered`` are the ``Copies`` so far.
    :raise EndedError: the cluster has ended.
    :raise PvcError: the destination cannot be written.
    """
    sources, target = parse_copy(words, control.record.placement.count)
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    with Loop((), lambda _: None) as loop:
        copier = _Copier(control, loop, user, progress or (lambda _: None), deadline, links)
        done = copier.copy_in(sources, target) if target.vms else copier.copy_out(sources, target)
    if copier.lost:
        control.check_running()
    if copier.late:
        raise GuestTimeoutError(f"the copy did not end within {timeout_s:g} s", gathered=done)
    return done


@dataclass
class _Copier:
    """What all copies of one command share."""

    control: Control
    loop: Loop
    user: str
    progress: Progress
    deadline: float | None
    links: bool
    late: bool = False
    lost: bool = False

    def copy_in(self, sources: Sequence[Place], target: Place) -> Copies:
        """Files of this machine, and of VMs, to VMs."""
        done = Copies([self._result(rank) for rank in target.vms])
        senders = sorted({rank for source in sources for rank in source.vms})
        with Agents(self.control, self.loop, len(target.vms) + len(senders)) as agents:
            _connect(agents, done.vms)
            found = self._find(agents, [self._result(rank) for rank in senders], sources)
            several = len(sources) > 1 or any(len(paths) > 1 for paths in found.values())
            for source in sources:
                if not source.vms:
                    self._send(agents, done, source, target, several=several)
                for rank in source.vms:
                    for path in found.get((source, rank), ()):
                        above = f"vm{rank}" if len(senders) > 1 else None
                        passage = TreePass(asked_name(path, rank), above, links=self.links)
                        self._pass(agents, done, (rank, path), passage, target, into=several or above is not None)
        return done

    def copy_out(self, sources: Sequence[Place], target: Place) -> Copies:
        """Files of VMs here; of several VMs each gets a directory of its name in ``target``."""
        results = {rank: self._result(rank) for rank in sorted({rank for source in sources for rank in source.vms})}
        with Agents(self.control, self.loop, len(results)) as agents:
            _connect(agents, results.values())
            found = self._find(agents, results.values(), sources)
            several = len(sources) > 1 or any(len(paths) > 1 for paths in found.values())
            for source in sources:
                # One file of each VM at a time.
                for paths in zip_longest(*(found.get((source, rank), ()) for rank in source.vms)):
                    wanted = [(rank, path) for rank, path in zip(source.vms, paths, strict=True) if path is not None]
                    self._receive(agents, results, wanted, target, into=several)
        return Copies(list(results.values()))

    def _result(self, rank: int) -> Copied:
        return Copied(rank, find_node(self.control.record, rank))

    def _find(
        self, agents: Agents, results: Iterable[Copied], sources: Sequence[Place]
    ) -> dict[tuple[Place, int], list[str]]:
        """Which files each source means in each of its VMs.

        :raise GuestError: the agent does not say.
        """
        found: dict[tuple[Place, int], list[str]] = {}
        for result in results:
            for source in sources:
                if result.rank in source.vms and result.error is None:
                    found[source, result.rank] = self._expand(agents, result.rank, source.path or ".")
        return found

    def _expand(self, agents: Agents, rank: int, path: str) -> list[str]:
        if not any(sign in path for sign in "*?["):
            return [path]
        words = [("op", "glob"), ("path", path), ("user", self.user)]
        said = bytes(ask(agents, self.loop, rank, words, self._left_s(_GLOB_S)).out).split(b"\0")[:-1]
        matches = [os.fsdecode(each) for each in said]
        # A guest that chose other names would choose which of our files it replaces.
        if not matches or len(matches) > _MOST_MATCHES or not all(is_match(each, path) for each in matches):
            raise GuestError(f"vm{rank} does not say, or not as it should, which files {path!r} means")
        return matches

    def _send(self, agents: Agents, done: Copies, source: Place, target: Place, *, several: bool) -> None:
        sent = Sent()
        uploads: Uploads
        if source.is_stream:
            uploads = InputUploads(self.loop, sent, self.progress)
        else:
            uploads = FileUploads(read_tree(source.path, sent), self.progress)
        left = self._open_puts(agents, done, uploads, target, into=several, exact=source.is_stream)
        try:
            uploads.feed()
            self._wait(uploads.streams)
        finally:
            uploads.close()
        for result, stream in zip(left, uploads.streams, strict=True):
            _judge(result, stream)
            if result.error is None:
                result.bytes += sent.bytes
                result.files += sent.files
        done.complaints += sent.complaints
        done.notes += sent.notes

    def _pass(
        self, agents: Agents, done: Copies, place: tuple[int, str], passage: TreePass, target: Place, *, into: bool
    ) -> None:
        rank, path = place
        stream = Source(passage, self.progress)
        left = self._open_puts(agents, done, stream.uploads, target, into=into)
        if not left:
            return
        if not stream.closed:  # all of them have refused it
            agents.open(rank, [("op", "get"), ("path", path), ("user", self.user)], stream)
        self._wait([stream, *stream.uploads.streams])
        sender = self._result(rank)
        _judge_sent(sender, stream, passage)
        for result, each in zip(left, stream.uploads.streams, strict=True):
            if each.result:  # else it was let go, for the sender's error
                _judge(result, each)
            result.problems += [f"vm{rank}: {text}" for text in sender.problems]
            result.notes += [f"vm{rank}: {text}" for text in passage.notes]
            if result.error is None:
                result.bytes += passage.bytes
                result.files += passage.files
                result.error, result.hint = sender.error and f"vm{rank}: {sender.error}", sender.hint

    def _open_puts(
        self, agents: Agents, done: Copies, uploads: Uploads, target: Place, *, into: bool, exact: bool = False
    ) -> list[Copied]:
        words = [("op", "put"), ("path", target.path or "."), ("user", self.user)]
        words += [("into", "1")] if into else []
        words += [("exact", "1")] if exact else []
        left = [each for each in done.vms if each.error is None]
        for result in left:
            stream = Upload(uploads)
            agents.open(result.rank, words, stream)
            uploads.streams.append(stream)
        return left

    def _receive(
        self,
        agents: Agents,
        results: dict[int, Copied],
        wanted: Sequence[tuple[int, str]],
        target: Place,
        *,
        into: bool,
    ) -> None:
        with ExitStack() as opened:
            streams = []
            for rank, path in wanted:
                if results[rank].error is not None:
                    continue
                writer = self._open_writer(target, rank, path, alone=len(results) == 1, into=into)
                opened.callback(writer.close)
                stream = Download(writer, self.progress)
                streams.append(stream)
                agents.open(rank, [("op", "get"), ("path", path), ("user", self.user)], stream)
            self._wait(streams)
        for stream in streams:
            result = results[stream.rank]
            result.bytes += stream.writer.bytes
            result.files += stream.writer.files
            result.notes += stream.writer.notes
            _judge_sent(result, stream, stream.writer)

    def _open_writer(self, target: Place, rank: int, path: str, *, alone: bool, into: bool) -> Writer:
        """:raise HostError: it cannot be there."""
        if target.is_stream:
            return OutputWriter()
        place = target.path
        if not alone:
            place, into = os.path.join(place, f"vm{rank}"), True
            try:
                os.makedirs(place, exist_ok=True)
            except OSError as err:
                hint = "of several VMs each gets a directory of its name"
                raise HostError(f"cannot make {place}", hint=hint) from err
        return TreeWriter(place, asked_name(path, rank), into=into, links=self.links)

    def _wait(self, streams: Sequence[Stream]) -> None:
        """Until all have ended, or the time ran out for those that have not: it has for all that comes later, too."""
        left_s = None if self.deadline is None else self._left_s(0.0)
        if not self.loop.run_until(lambda: all(stream.closed for stream in streams), timeout_s=left_s):
            self.late = True
        self.lost = self.lost or any(is_lost(stream.result or {}) for stream in streams)

    def _left_s(self, other: float) -> float:
        return other if self.deadline is None else max(0.0, self.deadline - time.monotonic())


def is_match(path: str, pattern: str) -> bool:
    """Whether a guest may say that ``pattern`` means ``path``, as glob(7) has it."""
    if path == pattern:
        return True
    parts, wanted = path.split("/"), pattern.split("/")
    return len(parts) == len(wanted) and all(map(_is_part, parts, wanted))


def _is_part(part: str, pattern: str) -> bool:
    if part.startswith(".") and not pattern.startswith("."):
        return False
    if part in (".", "..") and part != pattern:
        return False
    return part == pattern or (bool(part) and fnmatch.fnmatchcase(part, pattern.replace("[^", "[!")))


def _connect(agents: Agents, results: Iterable[Copied]) -> None:
    broken = agents.connect([result.rank for result in results])
    for result in results:
        err = broken.get(result.node)
        if err is not None:
            result.error, result.hint = str(err), err.find_hint()


def _judge(result: Copied, stream: Speaking) -> None:
    if stream.result is None:
        result.error = "the time ran out"
        return
    words = stream.result
    lines = [line.removeprefix("pvc-agent: ") for line in clean_lines(stream.said.decode(errors="replace"))]
    failure = Failure.of_words(words)
    if failure is not None:
        result.error, result.hint = failure.error, failure.hint
    elif words.get("exit") != "0":
        result.error = "; ".join(lines[:5]) or "the agent could not copy it"
        if "No space left" in result.error:
            result.hint = f"free space in vm{result.rank}; nothing of what was not complete is left there"
    else:
        result.problems += lines


def _judge_sent(result: Copied, stream: Speaking, taken: Taken) -> None:
    result.problems += taken.problems
    if stream.problem is not None:
        result.error, result.hint = str(stream.problem), stream.problem.find_hint()
        return
    _judge(result, stream)
    if result.error is None and not taken.complete:
        result.error = "the copy is not complete"
