# SPDX-License-Identifier: Apache-2.0
"""OCI image layouts: directories of files named by their checksum, and an index.json of what is tagged.

Read as if somebody hostile wrote them. What is written appears at the end: files first, then the new index.
Source: image-layout.md of the image-spec of the Open Container Initiative.
"""

from __future__ import annotations

import hashlib
import io
import json
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from pvc import files
from pvc.errors import GuestError, HostError, UsageError
from pvc.images import scratch
from pvc.images.appear import appearing
from pvc.images.image import Blob
from pvc.images.ocimanifest import (
    MANIFEST,
    MAX_DOCUMENT,
    REF_NAME,
    Descriptor,
    Index,
    parse_document,
    plan_index,
)
from pvc.images.streams import Progress, open_source, read_exactly

_MARK = json.dumps({"imageLayoutVersion": "1.0.0"}).encode()
_CHUNK = 4 << 20


def blob_path(layout: Path, blob: Blob) -> Path:
    """Where a layout has a file."""
    return layout / "blobs" / "sha256" / blob.sha256


def read_blob(path: Path, blob: Blob) -> bytes:
    """A manifest, an index or a config.

    :raise ValueError: it is too large, or not what its name says.
    :raise UsageError: it cannot be read.
    """
    if blob.size > MAX_DOCUMENT:
        raise ValueError(f"a description of {blob.size} bytes is absurd (at most {MAX_DOCUMENT})")
    with open_source(path) as stream:
        content = read_exactly(stream, blob.size + 1)
    if Blob(hashlib.sha256(content).hexdigest(), len(content)) != blob:
        raise ValueError(f"its file {blob.sha256} is damaged")
    return content


def find_tag(layout: Path, tag: str | None) -> Descriptor:
    """What a layout has under a tag; without one, the only thing that it has.

    :raise ValueError: there is no such tag, or there are several and none was named; the index is damaged.
    :raise UsageError: it cannot be read.
    """
    with open_source(layout / "index.json") as stream:
        index = parse_document(read_exactly(stream, MAX_DOCUMENT + 1))
    if not isinstance(index, Index):
        raise ValueError("its index.json is no index")
    found = [each for each in index.manifests if tag is None or each.annotations.get(REF_NAME) == tag]
    if len(found) == 1:
        return found[0]
    tags = sorted({each.annotations.get(REF_NAME, "") for each in index.manifests} - {""})
    known = ", ".join(ascii(each)[1:-1][:100] for each in tags[:20]) or "none"
    raise ValueError(f"it has no tag {tag!r} (tags: {known})" if tag else f"say which tag is meant: {known}")


def write_layout(
    layout: Path,
    tag: str,
    manifest: bytes,
    config: bytes,
    blobs: dict[Blob, Path],
    progress: Progress,
) -> None:
    """Put an image into a layout, made when it is not there; another one of this tag loses it.

    :raise UsageError: something else is there, or it may not be written.
    :raise GuestError: a file is not what its name says.
    :raise HostError: the disk is full.
    """
    made = _ensure(layout)
    contents = {_blob_of(each): each for each in (config, manifest)}
    try:
        with ExitStack() as opened:
            # All get their names when all are written.
            for blob, source in blobs.items():
                if not scratch.has_size(blob_path(layout, blob), blob.size):
                    target = opened.enter_context(appearing(blob_path(layout, blob), replace=True))
                    _copy(source, blob, target, progress)
            for blob, content in contents.items():
                if not scratch.has_size(blob_path(layout, blob), blob.size):
                    opened.enter_context(appearing(blob_path(layout, blob), replace=True)).write(content)
        _set_tag(layout, Descriptor(MANIFEST, _blob_of(manifest), {REF_NAME: tag}))
    except BaseException:
        if made:
            files.remove_tree(layout)
        raise


def stage_layout(layout: Path, manifest: bytes, config: bytes, blobs: dict[Blob, Path]) -> None:
    """A layout of links to files that are elsewhere, for a program that reads one.

    :raise OSError: it cannot be written.
    """
    (layout / "blobs" / "sha256").mkdir(parents=True)
    (layout / "oci-layout").write_bytes(_MARK)
    for content in (config, manifest):
        blob_path(layout, _blob_of(content)).write_bytes(content)
    for blob, source in blobs.items():
        blob_path(layout, blob).symlink_to(source.absolute())
    (layout / "index.json").write_bytes(plan_index((Descriptor(MANIFEST, _blob_of(manifest), {REF_NAME: "pvc"}),)))


def _blob_of(content: bytes) -> Blob:
    return Blob(hashlib.sha256(content).hexdigest(), len(content))


def _ensure(layout: Path) -> bool:
    """Whether the layout had to be made."""
    try:
        if (layout / "oci-layout").is_file():
            return False
        made = not layout.exists()
        if not made and any(layout.iterdir()):
            raise UsageError(f"{layout} is neither an OCI layout nor empty")
        (layout / "blobs" / "sha256").mkdir(parents=True)
        files.write_atomic(layout / "index.json", plan_index(()))
        files.write_atomic(layout / "oci-layout", _MARK)
    except OSError as err:
        raise UsageError(f"cannot write {layout}") from err
    return made


def _set_tag(layout: Path, descriptor: Descriptor) -> None:
    try:
        with files.locked(layout / ".pvc-lock"):
            try:
                index = parse_document((layout / "index.json").read_bytes())
            except ValueError as err:
                raise UsageError(f"{layout / 'index.json'} is damaged: {err}") from None
            others = index.manifests if isinstance(index, Index) else ()
            tag = descriptor.annotations[REF_NAME]
            kept = tuple(each for each in others if each.annotations.get(REF_NAME) != tag)
            files.write_atomic(layout / "index.json", plan_index((*kept, descriptor)), sync=True)
            (layout / ".pvc-lock").unlink()
    except OSError as err:
        raise HostError(f"cannot write {layout}") from err


def _copy(source: Path, blob: Blob, target: IO[bytes], progress: Progress) -> None:
    digest, done, label = hashlib.sha256(), 0, blob.sha256[:12]
    try:
        stream = io.FileIO(source)
    except OSError as err:
        raise GuestError(f"a file of the image cannot be read: {source}") from err
    with stream:
        progress(label, 0, blob.size)
        while done < blob.size and (chunk := stream.read(min(_CHUNK, blob.size - done))):
            digest.update(chunk)
            target.write(chunk)
            done += len(chunk)
            progress(label, done, blob.size)
    if Blob(digest.hexdigest(), done) != blob:
        raise GuestError(f"the image is damaged: {source} is not what its name says", hint="see pvc image verify")
