# SPDX-License-Identifier: Apache-2.0
"""Images of a repository of pcocc's, with all their revisions, into one of pvc's.

Files are the same but for one thing: where a layer names the file below it, pcocc writes ``../../data/xx/SHA256``,
maybe without its format, and pvc ``../xx/SHA256`` with it. So the lowest layer keeps its checksum, and each other one
is a copy with another header. Revision N becomes N + 1, for pvc's begin with 1; where it is there already it is known
by a hint.

An image comes with all its revisions or not at all. What was taken before an error or Ctrl-C stays, and the same
command goes on from there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from io import FileIO
from pathlib import Path, PurePosixPath
from typing import Literal

from pvc.errors import CommandError, GuestError, UsageError
from pvc.files import open_own
from pvc.host import qemuimg
from pvc.images import header
from pvc.images.chain import backing_name, backing_of
from pvc.images.image import Blob, Format, Image, Layer
from pvc.images.opened import open_image
from pvc.images.pcocc import Left, PcoccRepository, PcoccRevision
from pvc.images.store import Session, Store
from pvc.images.streams import Progress, check_space, copy_stream, hash_file, sync_file
from pvc.images.transfer import check_disk

# What tells in an image's hints which one of pcocc's it is.
HINT = "pcocc"
Outcome = Literal["taken", "there"]
_Layers = dict[tuple[str, ...], Layer]


@dataclass(frozen=True)
class Taken:
    """An image that the repository has now, by its revisions there; ``outcome``: since now, or before."""

    outcome: Outcome
    images: tuple[Image, ...]


def take_images(
    source: PcoccRepository, store: Store, owner: str, progress: Progress, *, only: str | None = None
) -> Iterator[Taken | Left]:
    """Take each image in turn, and tell what became of it; ``only`` is the name of the one that is wanted.

    :raise UsageError: there is none of that name.
    :raise HostError: the repository cannot be written, or is full; the image at hand is not there then.
    """
    if only is not None and only not in source.images:
        known = ", ".join(source.images) or "none"
        raise UsageError(f"{source.path} has no image {only!r} that can be taken (there: {known})")
    for name, revisions in source.images.items():
        if only not in (None, name):
            continue
        try:
            yield _take(source, store, revisions, owner, progress)
        except (UsageError, GuestError, CommandError) as err:
            yield Left(name, str(err))
        except ValueError as err:
            yield Left(name, str(err))


def _take(
    source: PcoccRepository, store: Store, revisions: tuple[PcoccRevision, ...], owner: str, progress: Progress
) -> Taken:
    """:raise ValueError: as any other error, the image cannot be taken."""
    missing: list[PcoccRevision] = []
    there: list[Image] = []
    for each in revisions:
        known = store.read(each.name, each.revision + 1)
        if known is None:
            missing.append(each)
        elif known.hints.get(HINT) != _mark(each):
            raise ValueError(
                f"{store.name}:{known} is there, and is not {each} of {source.path}: another repository could have it"
            )
        else:
            there.append(known)
    if not missing:
        return Taken("there", tuple(there))
    with store.session() as session, store.explained("write to"):
        layers: _Layers = {}
        images = [_bring(source, store, session, each, owner, layers, progress) for each in missing]
        made: list[Image] = []
        try:
            for image in images:
                made.append(session.commit(image, exact=True))
        except BaseException:
            for image in made:
                session.retract(image)
            raise
    return Taken("taken", tuple(sorted((*there, *made), key=lambda image: image.revision)))


def _mark(revision: PcoccRevision) -> str:
    by = f" by {revision.owner}" if revision.owner else ""
    return f"{revision}{by}, {revision.blobs[-1]}"


def _bring(
    source: PcoccRepository,
    store: Store,
    session: Session,
    revision: PcoccRevision,
    owner: str,
    layers: _Layers,
    progress: Progress,
) -> Image:
    """Have all layers of a revision in the session, and describe it."""
    found: list[Layer] = []
    for index, blob in enumerate(revision.blobs):
        key = revision.blobs[: index + 1]
        if key not in layers:
            below = found[-1] if found else None
            layers[key] = _bring_layer(source, store, session, revision, blob, below, key, progress)
        found.append(layers[key])
    top = found[-1]
    return Image(
        name=revision.name,
        revision=revision.revision + 1,
        created=revision.created,
        owner=owner,
        format=top.format,
        size=top.size,
        disk=top.blob,
        description=revision.description,
        hints={HINT: _mark(revision)},
        below=tuple(found[:-1]),
    )


def _bring_layer(
    source: PcoccRepository,
    store: Store,
    session: Session,
    revision: PcoccRevision,
    name: str,
    below: Layer | None,
    key: tuple[str, ...],
    progress: Progress,
) -> Layer:
    path = source.blob_path(name)
    with ExitStack() as opened:
        try:
            content = FileIO(open_image(os.fspath(path)))
        except OSError as err:
            raise GuestError(f"{revision} cannot be taken: {path} cannot be read") from err
        opened.enter_context(content)
        facts = _look(content, path, key)
        blob = Blob(name, os.fstat(content.fileno()).st_size)
        if below is None and session.claim(blob):
            own = opened.enter_context(FileIO(open_image(os.fspath(store.blob_path(blob)))))
            facts = _look(own, path, key)
            return Layer(blob, facts.format, facts.size)
        check_space(store, [content])
        stream, copy = opened.enter_context(store.temporary())
        if copy_stream(content, path, stream, False, _labelled(progress, str(revision))) != blob:
            raise GuestError(f"{revision} cannot be taken: {path} is not what its name says")
        # Who owns the source could write to it since we looked.
        with copy.open("rb", buffering=0) as again:
            if _look(again, path, key) != facts:
                raise UsageError(f"{path} changed while it was read")
        if below is not None:
            blob = _lay(copy, below, _labelled(progress, str(revision)))
        check_disk(copy, path, facts.format, facts.size, None if below is None else backing_of(below))
        session.add(blob, copy)
    return Layer(blob, facts.format, facts.size)


def _labelled(progress: Progress, label: str) -> Callable[[str, int, int], None]:
    return lambda _, done, total: progress(label, done, total)


def _look(stream: FileIO, path: Path, key: tuple[str, ...]) -> header.HeaderFacts:
    """A qcow2 that rests on the file that the description lists before it, or on none where it is the first.

    :raise UsageError: it is something else.
    """
    try:
        head = os.pread(stream.fileno(), header.PROBE_SIZE, 0)
    except OSError as err:
        raise UsageError(f"cannot read {path}") from err
    size = os.fstat(stream.fileno()).st_size
    said = header.find_backing_name(head)
    backing = None
    if len(key) > 1:
        if PurePosixPath(said).name != key[-2]:
            raise UsageError(f"{path} names {said!r} as the file below it, where the image has {key[-2]}")
        backing = header.Backing(said, None)
    try:
        return header.parse_header(head, size, Format.QCOW2, backing=backing)
    except header.HeaderError as err:
        raise UsageError(f"{path} is refused: {err}", hint=err.hint) from None


def _lay(path: Path, below: Layer, progress: Progress) -> Blob:
    """Have a file of ours rest on a layer of pvc's, and tell what it is then."""
    fd = open_own(path, os.O_RDWR)
    try:
        qemuimg.rest_on(fd, backing_name(below.blob), below.format.value)
    finally:
        os.close(fd)
    sync_file(path)
    return hash_file(path, path.name, progress)
