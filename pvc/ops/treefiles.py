# SPDX-License-Identifier: Apache-2.0
"""Trees to and from our own files. What a guest sends gets the name that was asked for and stays below it.

Directories are opened part by part, symbolic links are never followed and may not lead out of the tree, set-uid bits
and what our umask forbids are dropped, and a name appears when what it stands for is complete.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

from pvc.channel.frames import ProtocolError
from pvc.channel.trees import Content, Entry, FilePacker, Hole, TreeReader, check_name, pack_entry
from pvc.errors import HostError, UsageError
from pvc.texts import clean_text

_BLOCK = 1 << 18
_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# A hostile guest may send times that no file can have.
_MAX_TIME_NS = (1 << 62) - 1
# And complaints without end.
MAX_PROBLEMS = 1000
_SHOWN_NAME = 300
# Set-uid bits were given by the owner of the source, and the copy is another one's file.
_KEPT_MODE = 0o1777
CHANGED = "changed while it was read"


def top_name(path: str) -> str:
    """What a file or directory is called, however it is written.

    :raise UsageError: it is not there.
    """
    place = Path(path)
    if not os.path.lexists(place):
        raise UsageError(f"there is no {path}")
    name = place.name if place.name not in ("", "..") else place.resolve().name
    return name or "root"


def measure(path: str) -> int:
    """How many bytes ``read_tree`` will read, about: what is no hole."""
    if not os.path.isdir(path):
        with suppress(OSError):
            return _stored(os.stat(path))
        return 0
    total = 0
    for directory, _, names in os.walk(path):
        for name in names:
            with suppress(OSError):
                facts = os.lstat(os.path.join(directory, name))
                total += _stored(facts) if stat.S_ISREG(facts.st_mode) else 0
    return total


def _stored(facts: os.stat_result) -> int:
    return min(facts.st_size, facts.st_blocks * 512)


@dataclass
class Sent:
    """What was read of a tree; ``complaints``: what could not be, ``notes``: what changed meanwhile."""

    bytes: int = 0
    files: int = 0
    complaints: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_tree(path: str, sent: Sent) -> Iterator[bytes]:
    """A file or directory as a tree."""
    yield from _read_entry(path, top_name(path), sent, follow=True)
    yield pack_entry(Entry("end"))


def _read_entry(path: str, name: str, sent: Sent, *, follow: bool) -> Iterator[bytes]:
    try:
        facts = os.stat(path, follow_symlinks=follow)
        if stat.S_ISLNK(facts.st_mode):
            yield pack_entry(Entry("link", name, target=os.readlink(path)))
        elif stat.S_ISDIR(facts.st_mode):
            names = sorted(os.listdir(path))
            yield pack_entry(Entry("dir", name, facts.st_mode & _KEPT_MODE, facts.st_mtime_ns))
            for each in names:
                yield from _read_entry(os.path.join(path, each), f"{name}/{each}", sent, follow=False)
        elif stat.S_ISREG(facts.st_mode):
            yield from _read_file(path, name, sent)
        else:
            sent.complaints.append(f"{path}: neither a file, a directory nor a link: left out")
    except (OSError, ValueError) as err:
        sent.complaints.append(f"{path}: {err.strerror if isinstance(err, OSError) else err}")


def _read_file(path: str, name: str, sent: Sent) -> Iterator[bytes]:
    """To its end, wherever that is: files of /proc have no size, and others grow."""
    with open(path, "rb", buffering=0) as stream:
        before = os.fstat(stream.fileno())
        stored = _stored(before)
        sparse = stored < before.st_size and _tells_holes(stream.fileno())
        entry = Entry("file", name, before.st_mode & _KEPT_MODE, before.st_mtime_ns, before.st_size)
        yield pack_entry(replace(entry, stored=stored) if sparse else entry)
        packer, problem = FilePacker(), ""
        try:
            for piece in _find_pieces(stream) if sparse else iter(lambda: stream.read(_BLOCK), b""):
                if isinstance(piece, int):
                    yield packer.pack_hole(piece)
                else:
                    sent.bytes += len(piece)
                    yield packer.pack(piece)
        except OSError as err:
            problem = err.strerror or "cannot be read"
        yield packer.end()
        if problem:
            sent.complaints.append(f"{path}: {problem}")
            yield pack_entry(Entry("bad", name, error=problem))
            return
        sent.files += 1
        after = os.fstat(stream.fileno())
        if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            sent.notes.append(f"{path} {CHANGED}")


def _find_pieces(stream: IO[bytes]) -> Iterator[bytes | int]:
    """Data, and in place of holes their sizes."""
    fd, at = stream.fileno(), 0
    while True:
        start = _seek_data(fd, at)
        end = os.lseek(fd, 0, os.SEEK_END) if start is None else start
        if end > at:
            yield end - at
            at = end
        if start is None:
            return
        end = os.lseek(fd, start, os.SEEK_HOLE)
        os.lseek(fd, start, os.SEEK_SET)
        while at < end:
            data = stream.read(min(_BLOCK, end - at))
            if not data:
                return
            yield data
            at += len(data)


def _tells_holes(fd: int) -> bool:
    try:
        _seek_data(fd, 0)
        os.lseek(fd, 0, os.SEEK_SET)
    except OSError:
        return False
    return True


def _seek_data(fd: int, at: int) -> int | None:
    """Where the next byte is that is in no hole; None: there is none."""
    try:
        return os.lseek(fd, at, os.SEEK_DATA)
    except OSError as err:
        if err.errno != errno.ENXIO:
            raise
        return None


def leads_out(entry: Entry) -> bool:
    """Whether a symbolic link may lead out of the tree that it is in.

    Behind a name, which may be another link's, ".." could be anywhere.
    """
    above = len(check_name(entry.name)) - 2
    parts = [part for part in entry.target.split("/") if part not in ("", ".")]
    climbed = next((at for at, part in enumerate(parts) if part != ".."), len(parts))
    return entry.target.startswith("/") or climbed > above or ".." in parts[climbed:]


class Taken:
    """What is known of a tree that comes from a guest: what was in it, and what it, or who takes it, complains of."""

    def __init__(self) -> None:
        self.bytes = 0
        self.files = 0
        self.complete = False
        self.problems: list[str] = []
        self.notes: list[str] = []
        self._reader = TreeReader()


class TreeWriter(Taken):
    """Writes one tree: as ``name`` into ``path`` if that is a directory (or ``into``), else as ``path``.

    Its sender's name for it counts for nothing. ``links``: also links that lead out of it. Close it in any case.
    """

    def __init__(self, path: str, name: str, *, into: bool = False, links: bool = False) -> None:
        """:raise HostError: there is no such directory."""
        assert name == os.path.basename(name) not in ("", ".", ".."), name
        super().__init__()
        self._shown = path
        self._final = name
        self._links = links
        self._umask = _read_umask()
        directory = path
        if not os.path.isdir(path):
            if into or path.endswith("/"):
                raise HostError(f"{path} is no directory")
            directory, self._final = os.path.split(path)
        try:
            self._parent = os.open(directory or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as err:
            raise HostError(f"cannot write {path}") from err
        self._top = -1
        self._temporary = ""
        self._file = -1
        self._at = 0
        self._place = (-1, "", "")  # directory, temporary name and name of the file that is being written
        self._entry = Entry("end")
        self._dirs: list[Entry] = []

    def feed(self, data: bytes) -> None:
        """:raise HostError: it cannot be written. :raise ProtocolError: it is no tree."""
        try:
            for item in self._reader.feed(data):
                if isinstance(item, Content):
                    self._content(item)
                elif isinstance(item, Hole):
                    self._at = os.lseek(self._file, item.size, os.SEEK_CUR)
                else:
                    self._take(item)
        except OSError as err:
            raise HostError(f"cannot write {self._show(self._entry)}") from err

    def close(self) -> None:
        """Remove what is not complete."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
            with suppress(OSError):
                os.unlink(self._place[1], dir_fd=self._place[0])
        self._drop_place()
        if self._top >= 0:
            os.close(self._top)
            self._top = -1
        if self._temporary:
            _remove(self._temporary, self._parent)
        if self._parent >= 0:
            os.close(self._parent)
            self._parent = -1

    def _take(self, entry: Entry) -> None:
        self._entry = entry
        if entry.kind == "end":
            self._finish()
            return
        if entry.kind == "bad":
            self._set_aside(entry)
            return
        if entry.kind == "changed":
            self._note(f"{self._show(entry)} {CHANGED}")
            return
        parts = check_name(entry.name)
        if len(parts) == 1:
            self._take_top(entry)
        elif self._top < 0:
            raise ProtocolError("a file below what is no directory")
        else:
            self._make(entry, self._open_dir(parts[1:-1]), parts[-1])

    def _take_top(self, entry: Entry) -> None:
        if self._top >= 0:
            raise ProtocolError("a second top")
        if entry.kind == "link":
            raise ProtocolError("a link in place of what it leads to")
        if entry.kind != "dir":
            self._make(entry, os.dup(self._parent), self._final)
            return
        try:
            self._top = os.open(self._final, _DIR, dir_fd=self._parent)
        except FileNotFoundError:
            self._temporary = _temporary_name()
            os.mkdir(self._temporary, 0o700, dir_fd=self._parent)
            self._top = os.open(self._temporary, _DIR, dir_fd=self._parent)
            self._dirs.append(entry)

    def _open_dir(self, parts: tuple[str, ...]) -> int:
        fd = os.dup(self._top)
        for part in parts:
            try:
                inner = os.open(part, _DIR, dir_fd=fd)
            finally:
                os.close(fd)
            fd = inner
        return fd

    def _make(self, entry: Entry, where: int, name: str) -> None:
        """One entry in the directory ``where``, which is closed when nothing more is to be done there."""
        try:
            if entry.kind == "dir":
                with suppress(FileExistsError):
                    os.mkdir(name, 0o700, dir_fd=where)
                    self._dirs.append(entry)
                os.close(os.open(name, _DIR, dir_fd=where))
                return
            temporary = _temporary_name()
            if entry.kind == "link":
                if leads_out(entry) and not self._links:
                    self._complain(entry, f"a link to {clean_text(entry.target, _SHOWN_NAME)}: left out (see --links)")
                    return
                os.symlink(entry.target, temporary, dir_fd=where)
                try:
                    os.rename(temporary, name, src_dir_fd=where, dst_dir_fd=where)
                except OSError:
                    os.unlink(temporary, dir_fd=where)
                    raise
                return
            if _is_directory(name, where):
                # Said now, not when all of it is there.
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self._file = os.open(temporary, flags, 0o600, dir_fd=where)
            self._drop_place()
            self._place = (where, temporary, name)
            self._at = 0
            where = -1
        finally:
            if where >= 0:
                os.close(where)
        self._reserve(entry.size if entry.stored is None else min(entry.stored, entry.size))

    def _reserve(self, size: int) -> None:
        """Whether there is room is known before it comes."""
        facts = os.fstatvfs(self._file)
        if size > facts.f_bavail * facts.f_frsize:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _content(self, content: Content) -> None:
        data = memoryview(content.data)
        self.bytes += len(data)
        self._at += len(data)
        while data:
            data = data[os.write(self._file, data) :]
        if not content.last:
            return
        where, temporary, name = self._place
        os.ftruncate(self._file, self._at)  # a hole at the end
        os.fchmod(self._file, self._entry.mode & ~self._umask)
        _set_time(self._file, self._entry.mtime_ns)
        file, self._file = self._file, -1
        try:
            os.close(file)
            os.rename(temporary, name, src_dir_fd=where, dst_dir_fd=where)
        except OSError:
            os.unlink(temporary, dir_fd=where)
            raise
        self.files += 1

    def _set_aside(self, entry: Entry) -> None:
        """The file before is worth nothing: it goes."""
        self._complain(entry, clean_text(entry.error))
        where, _, name = self._place
        if where >= 0 and name == (entry.name.rpartition("/")[2] if "/" in entry.name else self._final):
            os.unlink(name, dir_fd=where)
            self.files -= 1

    def _complain(self, entry: Entry, text: str) -> None:
        if len(self.problems) >= MAX_PROBLEMS:
            raise ProtocolError("more complaints than anybody reads")
        self.problems.append(f"{self._show(entry)}: {text}")

    def _note(self, text: str) -> None:
        if len(self.notes) < MAX_PROBLEMS:
            self.notes.append(text)

    def _show(self, entry: Entry) -> str:
        """What the sender calls it, but for the top's name, which is ours."""
        if not entry.name:
            return self._shown
        return clean_text("/".join((self._final, *entry.name.split("/")[1:])), _SHOWN_NAME)

    def _finish(self) -> None:
        for entry in reversed(self._dirs):
            fd = self._open_dir(check_name(entry.name)[1:])
            try:
                os.fchmod(fd, entry.mode & ~self._umask)
                _set_time(fd, entry.mtime_ns)
            finally:
                os.close(fd)
        if self._temporary:
            os.rename(self._temporary, self._final, src_dir_fd=self._parent, dst_dir_fd=self._parent)
            self._temporary = ""
        self.complete = True

    def _drop_place(self) -> None:
        if self._place[0] >= 0:
            os.close(self._place[0])
        self._place = (-1, "", "")


def _read_umask() -> int:
    """Ours; umask(2) tells it only by changing it, for all threads."""
    with suppress(OSError, ValueError), open("/proc/self/status", encoding="ascii", errors="replace") as stream:
        return next((int(line.split()[1], 8) for line in stream if line.startswith("Umask:")), 0o077)
    return 0o077


def _is_directory(name: str, parent: int) -> bool:
    try:
        return stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False


def _temporary_name() -> str:
    return f".pvc-{os.urandom(6).hex()}"


def _set_time(fd: int, mtime_ns: int) -> None:
    with suppress(OverflowError, ValueError):
        if 0 <= mtime_ns <= _MAX_TIME_NS:
            os.utime(fd, ns=(mtime_ns, mtime_ns))


def _remove(name: str, parent: int) -> None:
    """All below a directory that we made, without following anything."""
    with suppress(OSError):
        os.unlink(name, dir_fd=parent)
        return
    with suppress(OSError):
        fd = os.open(name, _DIR, dir_fd=parent)
        try:
            os.fchmod(fd, 0o700)
            for each in os.listdir(fd):
                _remove(each, fd)
        finally:
            os.close(fd)
        os.rmdir(name, dir_fd=parent)
