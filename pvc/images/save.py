# SPDX-License-Identifier: Apache-2.0
"""A disk that has changed since it was started from an image, as a new image or revision."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from pvc.errors import GuestError, HostError
from pvc.host.overlay import write_overlay
from pvc.images import header
from pvc.images.chain import MAX_LAYERS, backing_name, check_head, walk_layers
from pvc.images.derive import copy_blob, open_blob
from pvc.images.image import Blob, Format, Image
from pvc.images.store import Session, Store
from pvc.images.streams import Progress, check_space, hash_file
from pvc.plan.disks import plan_empty, plan_overlay


@dataclass(frozen=True)
class Changed:
    """A disk of ``size`` bytes that started from ``base`` of the repository ``source``; None: it was empty."""

    size: int
    base: Image | None
    source: Store | None


def must_flatten(base: Image | None) -> bool:
    """Whether one more layer on an image would be too many."""
    return base is not None and len(base.layers) >= MAX_LAYERS


def save_changed(
    changed: Changed,
    target: Store,
    name: str,
    owner: str,
    fill: Callable[[Path], None],
    progress: Progress,
    *,
    full: bool = False,
) -> Image:
    """Make a changed disk the next revision of ``name``: what it holds itself, on the layers of its image.

    ``fill`` writes the disk into an empty qcow2 file that rests on them; with ``full``, all of it into one that rests
    on nothing.

    :raise GuestError: the image is damaged.
    :raise HostError: the repository cannot be written; it is as before then.
    """
    base, alone = changed.base, full or changed.base is None
    with target.session() as session:
        if base is not None:
            _bring_files(changed, base, target, session, progress, disks=not alone)
        path = session.work_path("save")
        with target.explained("write to"):
            if alone or base is None:
                write_overlay(path, plan_empty(changed.size))
            else:
                write_overlay(path, plan_overlay(backing_name(base.disk), base.format.value, changed.size))
        fill(path)
        blob = hash_file(path, f"check of {name}", progress)
        image = _describe(changed, name, owner, blob, alone=alone)
        *_, (layer, backing) = walk_layers(image)
        with path.open("rb") as stream:
            problem = check_head(layer, backing, stream.read(header.PROBE_SIZE))
        if problem:
            raise HostError(f"the disk was not saved as it should be: {problem}")
        session.add(blob, path)
        return session.commit(image)


def _bring_files(
    changed: Changed, base: Image, target: Store, session: Session, progress: Progress, *, disks: bool
) -> None:
    """Have all other files of the new image in the repository, and keep them there."""
    assert changed.source is not None
    layers = {each.blob for each in base.layers}
    wanted = [blob for blob in dict.fromkeys(base.blobs) if disks or blob not in layers]
    missing = [blob for blob in wanted if not session.claim(blob)]
    if missing and os.path.samefile(changed.source.path, target.path):
        raise GuestError(
            f"image {changed.source.name}:{base} is damaged: {target.blob_path(missing[0])} is missing",
            hint=f"see pvc image verify {changed.source.name}:{base}",
        )
    with ExitStack() as opened:
        check_space(target, [opened.enter_context(open_blob(changed.source, base, blob)) for blob in missing])
        for blob in missing:
            copy_blob(changed.source, base, blob, target, session, progress)


def _describe(changed: Changed, name: str, owner: str, blob: Blob, *, alone: bool) -> Image:
    size = -(-changed.size // header.SECTOR) * header.SECTOR
    new = Image(name, 1, time.time(), owner, Format.QCOW2, size, blob)
    if changed.base is None:
        return new
    base = changed.base
    return replace(
        new,
        kernel=base.kernel,
        initrd=base.initrd,
        append=base.append,
        description=base.description,
        hints=base.hints,
        below=() if alone else base.layers,
    )
