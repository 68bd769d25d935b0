# SPDX-License-Identifier: Apache-2.0
"""One image repository: a directory on a file system that nodes share.

    .config              {"version": 1}
    data/xx/SHA256       the files of images, named by their content; never written to again
    meta/NAME@REV.json   one revision of an image
    .tmp/                what is unfinished; see pvc.images.scratch

Everybody reads without a lock: a file appears complete under its name, or not at all. Nobody writes under a
lock either, so no dead node can hold one: a revision's name is taken by link(2), and what a writer needs
is kept from collectors by claims.

    writer     claims each file in .tmp/, links it into data/, links the revision, looks that all files are
               (still) in data/ and links its own copy again if not, drops the claims
    collector  takes what no claim and no revision names out of data/ to .tmp/*.gone, and looks again: what
               is named by now is put back, the rest removed

A writer whose claim was made too late for the second look finds the file gone already and puts its own copy
there; any other claim was seen. A collector that dies in between leaves *.gone for the next one.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pvc import codec, files
from pvc.errors import GuestError, HostError, PvcError
from pvc.images import scratch
from pvc.images.image import MAX_REVISION, Blob, Image
from pvc.model.site import Repository

LOG = logging.getLogger(__name__)

VERSION = 1
_META = re.compile(r"^([A-Za-z0-9][A-Za-z0-9_.-]{0,62})@([1-9][0-9]{0,8})\.json$")
_MAX_META = 1 << 20
_PARTS = ("data", "meta", ".tmp")


@dataclass(frozen=True)
class Collected:
    """What was removed: files, and the bytes that they took."""

    files: int = 0
    size: int = 0

    def __add__(self, other: Collected) -> Collected:
        return Collected(self.files + other.files, self.size + other.size)


class Store:
    """A repository on disk; nothing is read before a method needs it."""

    def __init__(self, repository: Repository) -> None:
        self.name = repository.name
        self.path = Path(repository.path)

    # --- reading

    def exists(self) -> bool:
        """Whether the repository is there.

        :raise HostError: there is something else, or a repository of a later version.
        """
        try:
            config = files.read_text(self.path / ".config")
        except (FileNotFoundError, NotADirectoryError):
            if self._is_vacant():
                return False
            # Its maker may have ended it between the two looks.
            if (self.path / ".config").is_file():
                return self.exists()
            raise HostError(f"{self.path} is not an image repository (it has no .config)") from None
        except OSError as err:
            raise HostError(f"cannot read the image repository {self.name!r}") from err
        try:
            version = codec.read_json(config)["version"]
        except (ValueError, KeyError, TypeError):
            raise HostError(f"{self.path / '.config'} is damaged") from None
        if version != VERSION:
            raise HostError(f"image repository {self.path} has version {version}; this pvc knows {VERSION}")
        return True

    def _is_vacant(self) -> bool:
        """Whether nothing is there, or a repository that somebody is just making (.config comes last)."""
        # files.write_atomic puts a dot before the name of what it writes.
        try:
            return all(name in _PARTS or name.startswith("..config.") for name in os.listdir(self.path))
        except FileNotFoundError:
            return True
        except OSError:
            return False

    def list_revisions(self) -> dict[str, list[int]]:
        """The revisions of every image, in ascending order; names only, nothing is opened.

        :raise HostError: the repository cannot be read.
        """
        found: dict[str, list[int]] = {}
        if not self.exists():
            return found
        try:
            entries = os.listdir(self.path / "meta")
        except OSError as err:
            raise HostError(f"cannot read the image repository {self.name!r}") from err
        for entry in entries:
            match = _META.fullmatch(entry)
            if match:
                found.setdefault(match[1], []).append(int(match[2]))
        for revisions in found.values():
            revisions.sort()
        return found

    def read(self, name: str, revision: int) -> Image | None:
        """One revision; None when it is not there (any more).

        :raise GuestError: its description is damaged.
        :raise HostError: it cannot be read.
        """
        path = self.path / "meta" / f"{name}@{revision}.json"
        try:
            with path.open("rb") as stream:
                content = stream.read(_MAX_META)
        except FileNotFoundError:
            return None
        except OSError as err:
            raise HostError(f"cannot read image {name}@{revision} of repository {self.name!r}") from err
        try:
            image = codec.loads(Image, content)
            if (image.name, image.revision) != (name, revision):
                raise ValueError(f"it describes {image}")
        except ValueError as err:
            raise GuestError(
                f"image {name}@{revision} of repository {self.name!r} is damaged: {path}: {err}",
                hint=f"import it again, or remove it: pvc image delete {self.name}:{name}@{revision}",
            ) from None
        return image

    def measure(self) -> int:
        """Bytes that all files of images take on the disk.

        :raise OSError: the repository cannot be read.
        """
        return sum(path.stat().st_blocks * 512 for path in self._walk_data())

    def blob_path(self, blob: Blob) -> Path:
        """Where a file of an image is, whether or not it is there."""
        return self.path / "data" / blob.sha256[:2] / blob.sha256

    def stored_size(self, image: Image) -> int:
        """Bytes that the files of an image take: not the holes of raw disks, nor a file that is missing."""
        total = 0
        for blob in image.blobs:
            with suppress(FileNotFoundError):
                total += self.blob_path(blob).stat().st_blocks * 512
        return total

    # --- writing

    def ensure(self, *, private: bool) -> None:
        """Make the repository unless it is there: for its owner only when ``private``, else readable by all.

        :raise HostError: it cannot be made.
        """
        if self.exists():
            return
        with self.explained("make"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            scratch.make_dir(self.path, 0o700 if private else 0o755)
            for name in _PARTS:
                scratch.make_dir(self.path / name, 0o755)
            files.write_atomic(self.path / ".config", json.dumps({"version": VERSION}) + "\n", sync=True)

    @contextmanager
    def temporary(self) -> Iterator[tuple[IO[bytes], Path]]:
        """A new file of the repository, and its path; gone at the end unless renamed away or linked.

        A dead writer's file is known by its free lock, whatever node or PID namespace the writer ran in.

        :raise HostError: it cannot be made.
        """
        with self.explained("write to"):
            fd, path = scratch.open_temporary(self.path / ".tmp")
            try:
                with os.fdopen(fd, "w+b", buffering=0) as stream:
                    yield stream, path
            finally:
                with suppress(FileNotFoundError):
                    path.unlink()

    def publish(self, image: Image, contents: dict[str, Path], *, reuse: bool = False) -> Image:
        """Give ``image`` the next free revision, and its files (checksum -> temporary file) their names.

        ``reuse``: not if the newest revision differs in nothing but time and owner, and has all its files.

        :return: the image with its revision.
        :raise HostError: the repository cannot be written; nothing has been named then.
        """
        with self.session() as session:
            for blob in image.blobs:
                if not session.has(blob):
                    session.add(blob, contents[blob.sha256])
            return session.commit(image, reuse=reuse)

    @contextmanager
    def session(self) -> Iterator[Session]:
        """One writer's claims, for as long as the block lasts; then what nobody names is removed.

        :raise HostError: the repository cannot be written.
        """
        with self.temporary() as (_, path), self.explained("write to"):
            session = Session(self, path)
            try:
                yield session
            finally:
                session.close()
                # What stays is found by the next writer.
                with suppress(OSError, PvcError):
                    self.collect()

    def delete(self, name: str, revisions: list[int]) -> int:
        """Remove revisions of an image, and the files that no other image has; bytes freed.

        Who has a file open goes on reading it, as far as the file system allows.

        :raise HostError: the repository cannot be written.
        """
        with self.explained("write to"):
            for revision in revisions:
                with suppress(FileNotFoundError):
                    (self.path / "meta" / f"{name}@{revision}.json").unlink()
            scratch.sync_dir(self.path / "meta")
            return self.collect().size

    def collect(self, *, dry_run: bool = False) -> Collected:
        """Remove what dead writers have left, and files that no revision and no living writer names.

        A damaged description hides which files it needs: then no file of an image goes.

        :raise HostError: the repository cannot be written.
        """
        with self.explained("write to"):
            temporary = self.path / ".tmp"
            swept = Collected() if dry_run else _total(scratch.sweep(temporary))
            used = self._find_used()
            if used is None:
                self._put_back(None)
                return swept
            unused = [path for path in self._walk_data() if path.name not in used]
            if dry_run:
                return _total(scratch.stored_size(path) for path in unused)
            for path in unused:
                with suppress(FileNotFoundError):
                    os.rename(path, temporary / f"{path.name}.{secrets.token_hex(8)}.gone")
            for place in (self.path / "data", self.path / "meta"):
                scratch.remove_probes(place)
            if not scratch.find_gone(temporary):
                return swept
            scratch.refresh_dir(temporary)
            scratch.refresh_dir(self.path / "meta")
            return swept + self._put_back(self._find_used())

    def _find_used(self) -> set[str] | None:
        """Checksums that claims and revisions name; None where a damaged description hides some.

        Claims are read first: a writer drops them when its revision has its name.
        """
        used = scratch.find_claimed(self.path / ".tmp")
        try:
            for name, revisions in self.list_revisions().items():
                for revision in revisions:
                    image = self.read(name, revision)
                    used.update(blob.sha256 for blob in image.blobs) if image else None
        except PvcError as err:
            LOG.warning("unused files of repository %s stay: %s", self.name, err)
            return None
        return used

    def _walk_data(self) -> Iterator[Path]:
        for directory in os.scandir(self.path / "data"):
            if directory.is_dir(follow_symlinks=False):
                for entry in os.scandir(directory.path):
                    if scratch.is_sha256(entry.name):
                        yield Path(entry.path)

    def _put_back(self, used: set[str] | None) -> Collected:
        """End what collectors have begun: files of ``used`` (None: all) go back, the others are removed."""
        removed: list[int] = []
        for path in scratch.find_gone(self.path / ".tmp"):
            sha256 = path.name.partition(".")[0]
            with suppress(FileNotFoundError):
                if used is None or sha256 in used:
                    scratch.link(path, self.path / "data" / sha256[:2] / sha256)
                else:
                    removed.append(scratch.stored_size(path))
                path.unlink()
        return _total(removed)

    @contextmanager
    def explained(self, verb: str) -> Iterator[None]:
        """Turn errors of the system into ours, with the reason that people meet most.

        :raise HostError: in place of an OSError.
        """
        try:
            yield
        except OSError as err:
            hint = None
            if err.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                hint = "import into a repository of your own: pvc image import -R NAME (see pvc config check)"
            elif err.errno in (errno.ENOSPC, errno.EDQUOT):
                hint = f"free space below {self.path}, or delete images: pvc image delete"
            raise HostError(f"cannot {verb} the image repository {self.name!r} ({self.path})", hint=hint) from err


class Session:
    """What one writer is about to name; see the module. Methods raise OSError."""

    def __init__(self, store: Store, path: Path) -> None:
        self._store = store
        self._path = path
        self._claims: dict[Blob, Path] = {}

    def work_path(self, what: str) -> Path:
        """A name for a file of this session that other programs write; gone with the session."""
        return self._path.with_name(f"{what}.{self._path.name}.keep")

    def work_directory(self, what: str) -> Path:
        """A directory of this session; gone with it."""
        path = self.work_path(what)
        path.mkdir(mode=0o700)
        return path

    def has(self, blob: Blob) -> bool:
        """Whether ``blob`` was claimed or added."""
        return blob in self._claims

    def path_of(self, blob: Blob) -> Path:
        """Where a file that was added is until it has its name."""
        return self._claims[blob]

    def claim(self, blob: Blob) -> bool:
        """Keep a file that the repository has from collectors; False when it is not there, or is damaged."""
        path = self.work_path(blob.sha256)
        try:
            os.link(self._store.blob_path(blob), path)
        except FileNotFoundError:
            return False
        except FileExistsError:
            pass
        except PermissionError:
            # Another user's file (fs.protected_hardlinks): the name alone says that it is needed.
            path.touch(0o444, exist_ok=False)
        if not scratch.has_size(self._store.blob_path(blob), blob.size):
            path.unlink()
            return False
        self._claims[blob] = path
        return True

    def add(self, blob: Blob, path: Path) -> None:
        """Take a temporary file with this content; it is claimed, too."""
        files.set_mode(path, 0o444)
        os.rename(path, self.work_path(blob.sha256))
        self._claims[blob] = self.work_path(blob.sha256)

    def commit(self, image: Image, *, reuse: bool = False, exact: bool = False) -> Image:
        """As ``Store.publish``, of files that were all claimed or added. ``exact``: under the revision that it has.

        :raise HostError: the session lasted so long that it was taken for dead, or that revision has come meanwhile.
        """
        if reuse and (same := self._find_same(image)):
            return same
        for blob in image.blobs:
            self._settle(blob)
        for blob in image.blobs:
            scratch.sync_dir(self._store.blob_path(blob).parent)
        named = self._publish_meta(image, exact=exact)
        try:
            for blob in image.blobs:
                self._settle(blob)
        except BaseException:
            self.retract(named)
            raise
        return named

    def retract(self, named: Image) -> None:
        """Take back a revision that this session has named."""
        (self._store.path / "meta" / f"{named}.json").unlink(missing_ok=True)

    def close(self) -> None:
        """Drop all claims."""
        for path in self._path.parent.glob(f"*.{self._path.name}.keep"):
            with suppress(FileNotFoundError):
                scratch.remove(path)

    def _settle(self, blob: Blob) -> None:
        """Have the file in data/, whole."""
        path, own = self._store.blob_path(blob), self._claims[blob]
        scratch.make_dir(path.parent, 0o755)
        # A node's cached view of the directory may be older than what a collector elsewhere has done.
        scratch.refresh_dir(path.parent)
        if scratch.has_size(path, blob.size):
            return
        if not scratch.has_size(own, blob.size):
            raise HostError(f"a file of the image has vanished from repository {self._store.name!r} meanwhile")
        # A copy of another size is damaged.
        path.unlink(missing_ok=True)
        scratch.link(own, path, keep=True)

    def _find_same(self, image: Image) -> Image | None:
        revisions = self._store.list_revisions().get(image.name, [])
        newest = self._store.read(image.name, revisions[-1]) if revisions else None
        if newest is None:
            return None
        wanted = dataclasses.replace(image, revision=newest.revision, created=newest.created, owner=newest.owner)
        whole = all(scratch.has_size(self._store.blob_path(blob), blob.size) for blob in newest.blobs)
        return newest if newest == wanted and whole else None

    def _publish_meta(self, image: Image, *, exact: bool) -> Image:
        directory = self._store.path / "meta"
        taken = image.revision - 1 if exact else self._store.list_revisions().get(image.name, [0])[-1]
        with self._store.temporary() as (stream, path):
            while taken < MAX_REVISION:
                taken += 1
                numbered = dataclasses.replace(image, revision=taken)
                stream.seek(0)
                stream.truncate()
                stream.write((codec.dumps(numbered) + "\n").encode())
                os.fchmod(stream.fileno(), 0o444)
                os.fsync(stream.fileno())
                try:
                    os.link(path, directory / f"{numbered}.json")
                except FileExistsError:
                    # NFS: the answer to our own success may have been lost, and link(2) sent again.
                    if os.fstat(stream.fileno()).st_nlink < 2:
                        if exact:
                            raise HostError(f"{self._store.name}:{numbered} has come meanwhile") from None
                        continue
                scratch.sync_dir(directory)
                return numbered
        raise HostError(f"image {image.name!r} has no free revision left")


def _total(sizes: Iterable[int]) -> Collected:
    counted = list(sizes)
    return Collected(len(counted), sum(counted))
