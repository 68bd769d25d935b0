# SPDX-License-Identifier: Apache-2.0
"""All repositories of a user, in the order in which a name is looked up."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from pvc.errors import GuestError, PvcError, UsageError
from pvc.images import header
from pvc.images.archive import export_images, import_archive, write_images
from pvc.images.chain import check_head, walk_layers
from pvc.images.derive import copy_image, resize_image
from pvc.images.image import Image, ImageUri, parse_uri
from pvc.images.store import Store
from pvc.images.streams import Progress
from pvc.images.transfer import Incoming, import_files
from pvc.model.site import Repository

if TYPE_CHECKING:
    from pvc.images.oci import Reference

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class FoundImage:
    """An image, and the repository that has it."""

    repository: str
    image: Image

    @property
    def uri(self) -> str:
        """The name that means this very revision."""
        return f"{self.repository}:{self.image}"


class Repositories:
    """Repositories in priority order. Nothing is read before a method needs it.

    ``home``: repositories below it are their owner's alone when they are made.
    """

    def __init__(self, repositories: Sequence[Repository], *, home: Path | None = None) -> None:
        self.stores = tuple(Store(repository) for repository in repositories)
        self._home = home

    def store(self, name: str | None = None) -> Store:
        """The repository called ``name``, or the first one.

        :raise UsageError: there is none.
        """
        for store in self.stores:
            if name is None or store.name == name:
                return store
        if name is None:
            raise UsageError("no image repository is configured", hint="name one in ~/.pvc/repos.yaml")
        known = ", ".join(store.name for store in self.stores) or "none"
        raise UsageError(f"no image repository {name!r} (known: {known})")

    def stored_size(self, found: FoundImage) -> int:
        """Bytes that the files of an image take."""
        return self.store(found.repository).stored_size(found.image)

    def locate(self, uri: str | ImageUri) -> FoundImage:
        """The newest revision, or the one asked for, in the first repository that has the image.

        :raise UsageError: the name is malformed, or no repository has it.
        :raise GuestError: its description is damaged.
        :raise HostError: a repository cannot be read.
        """
        wanted = _parse(uri)
        stores = (self.store(wanted.repository),) if wanted.repository else self.stores
        for store in stores:
            revisions = store.list_revisions().get(wanted.name, [])
            for revision in [wanted.revision] if wanted.revision else reversed(revisions):
                image = store.read(wanted.name, revision)
                if image is not None:
                    return FoundImage(store.name, image)
        where = ", ".join(store.name for store in stores) or "none is configured"
        raise UsageError(
            f"no image {str(wanted)!r} (repositories: {where})",
            hint="see pvc image list; make one: pvc image build, pvc image import",
        )

    def choose(self, uri: str | ImageUri) -> tuple[Store, tuple[str, int]]:
        """As ``locate``, by names alone: repository, name and revision of an image that may be damaged.

        :raise UsageError: the name is malformed, or no repository has it.
        :raise HostError: a repository cannot be read.
        """
        wanted = _parse(uri)
        for store in (self.store(wanted.repository),) if wanted.repository else self.stores:
            revisions = store.list_revisions().get(wanted.name, [])
            if revisions and (wanted.revision or revisions[-1]) in revisions:
                return store, (wanted.name, wanted.revision or revisions[-1])
        raise UsageError(f"no image {str(wanted)!r}", hint="see pvc image list --all")

    def find(self, uri: str | ImageUri) -> Image:
        """The image that ``[repository:]name[@revision]`` means; see ``locate``."""
        return self.locate(uri).image

    def list(self, repository: str | None = None) -> tuple[FoundImage, ...]:
        """The newest revision of each image of each repository (or of one), by priority and name.

        What cannot be read is left out with a warning: one bad image must not hide the others.

        :raise UsageError: there is no such repository.
        """
        return tuple(self._walk(repository, every=False))

    def list_all(self, repository: str | None = None) -> tuple[FoundImage, ...]:
        """As ``list``, with all revisions."""
        return tuple(self._walk(repository, every=True))

    def _walk(self, repository: str | None, *, every: bool) -> Sequence[FoundImage]:
        found: list[FoundImage] = []
        for store in (self.store(repository),) if repository else self.stores:
            try:
                listed = sorted(store.list_revisions().items())
            except PvcError as err:
                LOG.warning("%s", err)
                continue
            for name, revisions in listed:
                for revision in revisions if every else revisions[-1:]:
                    try:
                        image = store.read(name, revision)
                    except PvcError as err:
                        LOG.warning("%s", err)
                        continue
                    if image is not None:
                        found.append(FoundImage(store.name, image))
        return found

    def verify(self, found: FoundImage) -> None:
        """Check that all files of an image are there, with the right size and header; contents are not read.

        :raise GuestError: one is missing or damaged.
        """
        store = self.store(found.repository)
        hint = f"import it again, or choose another: pvc image list; remove it: pvc image delete {found.uri}"
        layers = {layer.blob: (layer, backing) for layer, backing in walk_layers(found.image)}
        for blob in found.image.blobs:
            path = store.blob_path(blob)
            try:
                size, head = _read_head(path)
            except OSError as err:
                raise GuestError(f"image {found.uri} cannot be used", hint=hint) from err
            if size != blob.size:
                raise GuestError(
                    f"image {found.uri} is damaged: {path} has {size} bytes instead of {blob.size}", hint=hint
                )
            if blob in layers:
                problem = check_head(*layers[blob], head)
                if problem:
                    raise GuestError(f"image {found.uri} is damaged: {path}: {problem}", hint=hint)

    def import_file(
        self, incoming: Incoming, progress: Progress, *, repository: str | None = None, reuse: bool = False
    ) -> FoundImage:
        """Bring a disk in as the next revision of an image; the repository is made when it is not there.

        ``reuse``: if the newest revision is the same in all that matters, that one is returned.

        :raise UsageError: the source is not a disk that pvc takes, or there is no such repository.
        :raise HostError: the repository cannot be written, or is full; it is as before then.
        """
        store = self.ensure(repository)
        return FoundImage(store.name, import_files(store, incoming, progress, reuse=reuse))

    def import_archive(
        self,
        source: Path,
        name: str | None,
        owner: str,
        progress: Progress,
        *,
        repository: str | None = None,
        update: bool = False,
    ) -> tuple[FoundImage, ...]:
        """Bring the images of an archive in; see ``archive.import_archive``."""
        store = self.ensure(repository)
        made = import_archive(store, source, name, owner, progress, update=update)
        return tuple(FoundImage(store.name, each) for each in made)

    def import_oci(
        self, reference: Reference, incoming: Incoming, progress: Progress, *, repository: str | None = None
    ) -> FoundImage:
        """Bring an image of an OCI registry or layout in; see ``oci.import_oci``."""
        from pvc.images.oci import import_oci

        store = self.ensure(repository)
        return FoundImage(store.name, import_oci(store, reference, incoming, progress))

    def export_oci(self, found: FoundImage, reference: Reference, progress: Progress) -> str:
        """Write an image to an OCI registry or layout; the digest of its manifest. See ``oci.export_oci``."""
        from pvc.images.oci import export_oci

        return export_oci(self.store(found.repository), found.image, reference, progress)

    def export(self, found: Sequence[FoundImage], target: Path, progress: Progress, *, force: bool = False) -> None:
        """Write images as one archive; see ``archive.export_images``."""
        export_images([(self.store(each.repository), each.image) for each in found], target, progress, force=force)

    def export_to(self, found: Sequence[FoundImage], output: IO[bytes], progress: Progress) -> None:
        """The same into an open file or pipe; see ``archive.write_images``."""
        write_images([(self.store(each.repository), each.image) for each in found], output, progress)

    def copy(self, found: FoundImage, target: str, owner: str, progress: Progress) -> FoundImage:
        """Make an image the next revision of ``target`` ("[repository:]name"; by default in the first one).

        :raise UsageError: ``target`` is no name, or there is no such repository.
        :raise GuestError: the image is damaged.
        :raise HostError: a repository cannot be read or written; the target is as before then.
        """
        wanted = _parse(target)
        if wanted.revision:
            raise UsageError(f"{target!r}: revisions are numbered by the repository", hint=f"say {wanted.name!r}")
        source, store = self.store(found.repository), self.ensure(wanted.repository)
        return FoundImage(store.name, copy_image(source, found.image, store, wanted.name, owner, progress))

    def resize(self, found: FoundImage, size: int, owner: str, progress: Progress) -> FoundImage:
        """Make an image with a disk of ``size`` bytes its next revision; see ``resize_image``."""
        store = self.store(found.repository)
        return FoundImage(store.name, resize_image(store, found.image, size, owner, progress))

    def ensure(self, name: str | None) -> Store:
        """The repository called ``name``, or the first one; made when it is not there.

        :raise UsageError: there is none.
        :raise HostError: it cannot be made.
        """
        store = self.store(name)
        store.ensure(private=store.path.is_relative_to(self._home or Path.home()))
        return store

    def delete(self, uri: str | ImageUri, *, every: bool = False) -> tuple[tuple[str, ...], int]:
        """Remove one revision (the newest, unless one is named), or ``every`` one, and the files only it had.

        A damaged image can be removed too.

        :return: what was removed, and the bytes freed.
        :raise UsageError: there is no such image.
        :raise HostError: the repository cannot be written.
        """
        wanted = _parse(uri)
        for store in (self.store(wanted.repository),) if wanted.repository else self.stores:
            revisions = store.list_revisions().get(wanted.name, [])
            if wanted.revision:
                revisions = [wanted.revision] if wanted.revision in revisions else []
            elif not every:
                revisions = revisions[-1:]
            if revisions:
                freed = store.delete(wanted.name, revisions)
                return tuple(f"{store.name}:{wanted.name}@{revision}" for revision in revisions), freed
        raise UsageError(f"no image {str(wanted)!r}", hint="see pvc image list")


def _read_head(path: Path) -> tuple[int, bytes]:
    """Size and first bytes. A collector may have the file in hand for a moment and put it back."""
    for _ in range(5):
        with suppress(FileNotFoundError):
            return path.stat().st_size, _read_start(path)
        time.sleep(0.05)
    return path.stat().st_size, _read_start(path)


def _read_start(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(header.PROBE_SIZE)


def _parse(uri: str | ImageUri) -> ImageUri:
    if isinstance(uri, ImageUri):
        return uri
    try:
        return parse_uri(uri)
    except ValueError as err:
        raise UsageError(str(err)) from None
