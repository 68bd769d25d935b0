# SPDX-License-Identifier: Apache-2.0
"""Reading all that a repository has, and naming what is not as it should be."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pvc.errors import GuestError, HostError
from pvc.images.chain import find_wrong_header
from pvc.images.image import Blob
from pvc.images.store import Store
from pvc.images.streams import Progress, hash_file


@dataclass(frozen=True)
class Verdict:
    """What was found out about one revision: no ``problem``, no damage."""

    uri: str
    problem: str | None = None


def verify_store(store: Store, progress: Progress, wanted: Iterable[tuple[str, int]] | None = None) -> list[Verdict]:
    """Read every file of the ``wanted`` revisions (None: of all) once and compare size, checksum and header.

    :raise HostError: the repository cannot be read.
    """
    if wanted is None:
        wanted = [(name, revision) for name, all_ in sorted(store.list_revisions().items()) for revision in all_]
    known: dict[Blob, str | None] = {}
    return [
        verdict for name, revision in wanted for verdict in _verify_revision(store, name, revision, known, progress)
    ]


def _verify_revision(
    store: Store, name: str, revision: int, known: dict[Blob, str | None], progress: Progress
) -> Iterator[Verdict]:
    uri = f"{store.name}:{name}@{revision}"
    try:
        image = store.read(name, revision)
    except (GuestError, HostError) as err:
        yield Verdict(uri, str(err))
        return
    # Deleted meanwhile: nothing to say.
    if image is None:
        return
    problem = None
    for blob in image.blobs:
        if blob not in known:
            known[blob] = _find_damage(store.blob_path(blob), blob, uri, progress)
        problem = problem or known[blob]
    problem = problem or find_wrong_header(image, store.blob_path)
    # Its files go only after its name.
    if problem is None or store.read(name, revision) is not None:
        yield Verdict(uri, problem)


def _find_damage(path: Path, blob: Blob, label: str, progress: Progress) -> str | None:
    try:
        size = path.stat().st_size
        if size != blob.size:
            return f"{path} has {size} bytes instead of {blob.size}"
        found = hash_file(path, label, progress)
    except OSError as err:
        return f"{path}: {os.strerror(err.errno or 0)}"
    return None if found == blob else f"{path} has other content: sha256 {found.sha256}"
