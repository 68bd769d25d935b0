"""One image repository: a directory on a file system that nodes share.

    .config              {"version": 1}
    data/xx/SHA256       the files of images, named by their content; never written to again
    meta/NAME@REV.json   one revision of an image
    .tmp/                files being written, each held by flock(2) by its writer
    .lock                held while names are given or taken away

Everybody reads without a lock: a file appears complete under its name, or not at all. A revision's name
is taken by link(2), so two writers never get the same one, even on a file system without locks.
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
import logging
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from pvc import codec, files
from pvc.errors import GuestError, HostError, PvcError
from pvc.images.image import MAX_REVISION, Blob, Image
from pvc.model.site import Repository

LOG = logging.getLogger(__name__)

VERSION = 1
_META = re.compile(r"^([A-Za-z0-9][A-Za-z0-9_.-]{0,62})@([1-9][0-9]{0,8})\.json$")
_NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK}
# Where flock(2) does not work, a temporary file this old belongs to nobody any more.
_ABANDONED_S = 24 * 3600.0
_MAX_META = 1 << 20
_PARTS = ("data", "meta", ".tmp")


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
            version = json.loads(config)["version"]
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

    def blob_path(self, blob: Blob) -> Path:
        """Where a file of an image is, whether or not it is there."""
        return self.path / "data" / blob.sha256[:2] / blob.sha256

    # --- writing

    def ensure(self, *, private: bool) -> None:
        """Make the repository unless it is there: for its owner only when ``private``, else readable by all.

        :raise HostError: it cannot be made.
        """
        if self.exists():
            return
        with self._explained("make"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _make_dir(self.path, 0o700 if private else 0o755)
            for name in _PARTS:
                _make_dir(self.path / name, 0o755)
            files.write_atomic(self.path / ".config", json.dumps({"version": VERSION}) + "\n", sync=True)

    @contextmanager
    def temporary(self) -> Iterator[tuple[IO[bytes], Path]]:
        """A new file of the repository, and its path; gone at the end unless renamed away or linked.

        A dead writer's file is known by its free lock, whatever node or PID namespace the writer ran in.

        :raise HostError: it cannot be made.
        """
        with self._explained("write to"):
            fd, path = self._open_temporary()
            try:
                with os.fdopen(fd, "w+b", buffering=0) as stream:
                    yield stream, path
            finally:
                with suppress(FileNotFoundError):
                    path.unlink()

    def _open_temporary(self) -> tuple[int, Path]:
        while True:
            path = self.path / ".tmp" / secrets.token_hex(8)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                _try_lock(fd, wait=True)
                # A sweep may have taken it between the two calls.
                if os.fstat(fd).st_nlink:
                    return fd, path
            except BaseException:
                os.close(fd)
                path.unlink(missing_ok=True)
                raise
            os.close(fd)

    def publish(self, image: Image, contents: dict[str, Path], *, reuse: bool = False) -> Image:
        """Give ``image`` the next free revision, and its files (checksum -> temporary file) their names.

        ``reuse``: not if the newest revision differs in nothing but time and owner, and has all its files.

        :return: the image with its revision.
        :raise HostError: the repository cannot be written; nothing has been named then.
        """
        with self._explained("write to"), self._writing() as alone:
            self._sweep()
            if alone:
                self._remove_unused()
            if reuse and (same := self._find_same(image)):
                return same
            for blob in image.blobs:
                self._publish_blob(blob, contents[blob.sha256])
            try:
                return self._publish_meta(image)
            except BaseException:
                if alone:
                    self._remove_unused()
                raise

    def _find_same(self, image: Image) -> Image | None:
        revisions = self.list_revisions().get(image.name, [])
        newest = self.read(image.name, revisions[-1]) if revisions else None
        if newest is None:
            return None
        wanted = dataclasses.replace(image, revision=newest.revision, created=newest.created, owner=newest.owner)
        whole = all(_has_size(self.blob_path(blob), blob.size) for blob in newest.blobs)
        return newest if newest == wanted and whole else None

    def _publish_blob(self, blob: Blob, source: Path) -> None:
        path = self.blob_path(blob)
        _make_dir(path.parent, 0o755)
        # The same content may be there already. A copy of another size is damaged: it is replaced.
        if _has_size(path, blob.size):
            return
        os.rename(source, path)
        path.chmod(0o444)
        _sync_dir(path.parent)

    def _publish_meta(self, image: Image) -> Image:
        taken = self.list_revisions().get(image.name, [0])[-1]
        with self.temporary() as (stream, path):
            while taken < MAX_REVISION:
                taken += 1
                numbered = dataclasses.replace(image, revision=taken)
                stream.seek(0)
                stream.truncate()
                stream.write((codec.dumps(numbered) + "\n").encode())
                os.fchmod(stream.fileno(), 0o444)
                os.fsync(stream.fileno())
                with suppress(FileExistsError):
                    os.link(path, self.path / "meta" / f"{numbered}.json")
                    _sync_dir(self.path / "meta")
                    return numbered
        raise HostError(f"image {image.name!r} has no free revision left")

    def delete(self, name: str, revisions: list[int]) -> int:
        """Remove revisions of an image, and the files that no other image has; bytes freed.

        Nodes that have a file open go on reading it, as far as the file system allows.

        :raise HostError: the repository cannot be written.
        """
        with self._explained("write to"), self._writing():
            for revision in revisions:
                with suppress(FileNotFoundError):
                    (self.path / "meta" / f"{name}@{revision}.json").unlink()
            _sync_dir(self.path / "meta")
            self._sweep()
            return self._remove_unused()

    def sweep(self) -> None:
        """Remove what writers that died have left.

        :raise HostError: the repository cannot be written.
        """
        with self._explained("write to"), self._writing() as alone:
            self._sweep()
            if alone:
                self._remove_unused()

    def _sweep(self) -> None:
        for entry in os.scandir(self.path / ".tmp"):
            with suppress(FileNotFoundError):
                if _is_abandoned(Path(entry.path)):
                    LOG.debug("removing the unfinished %s", entry.path)
                    os.unlink(entry.path)

    def _remove_unused(self) -> int:
        """Bytes freed. A damaged description hides which files it needs: then nothing is removed."""
        used: set[str] = set()
        try:
            for name, revisions in self.list_revisions().items():
                for revision in revisions:
                    image = self.read(name, revision)
                    used.update(blob.sha256 for blob in image.blobs) if image else None
        except PvcError as err:
            LOG.warning("unused files of repository %s stay: %s", self.name, err)
            return 0
        freed = 0
        for directory in os.scandir(self.path / "data"):
            for entry in os.scandir(directory.path):
                if entry.name not in used:
                    freed += entry.stat(follow_symlinks=False).st_blocks * 512
                    os.unlink(entry.path)
        return freed

    @contextmanager
    def _writing(self) -> Iterator[bool]:
        """Hold the writers' lock; False where the file system has no locks, so others may write too."""
        fd = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            yield _try_lock(fd, wait=True)
        finally:
            os.close(fd)

    @contextmanager
    def _explained(self, verb: str) -> Iterator[None]:
        """Turn errors of the system into ours, with the reason that people meet most."""
        try:
            yield
        except OSError as err:
            hint = None
            if err.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                hint = "import into a repository of your own: pvc image import -R NAME (see pvc config check)"
            elif err.errno in (errno.ENOSPC, errno.EDQUOT):
                hint = f"free space below {self.path}, or delete images: pvc image delete"
            raise HostError(f"cannot {verb} the image repository {self.name!r} ({self.path})", hint=hint) from err


def _try_lock(fd: int, *, wait: bool) -> bool:
    """Whether the lock is ours now; where there are no locks it is nobody's, and the answer is False."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as err:
        if err.errno not in _NO_LOCKS and not isinstance(err, BlockingIOError):
            raise
        return False
    return True


def _is_abandoned(path: Path) -> bool:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode):
            return False
        return _try_lock(fd, wait=False) or time.time() - facts.st_mtime > _ABANDONED_S
    finally:
        os.close(fd)


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except FileNotFoundError:
        return False


def _make_dir(path: Path, mode: int) -> None:
    """Make a directory unless it is there, with this very mode whatever the umask."""
    with suppress(FileExistsError):
        path.mkdir()
        path.chmod(mode)


def _sync_dir(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
