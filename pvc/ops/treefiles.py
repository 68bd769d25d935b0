"""Trees to and from our own files. What a guest sends stays below the directory that it is for, whatever it says.

Directories are opened part by part, symbolic links are never followed, set-uid bits are dropped, and a name appears
when what it stands for is complete.
"""

from __future__ import annotations

import errno
import os
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from pvc.channel.frames import ProtocolError, printable
from pvc.channel.trees import Content, Entry, TreeReader, check_name, pack_crc, pack_entry
from pvc.errors import HostError, UsageError

_BLOCK = 1 << 18
_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# A hostile guest may send times that no file can have.
_MAX_TIME_NS = (1 << 62) - 1


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
    """How many bytes ``read_tree`` will read, about."""
    if not os.path.isdir(path):
        with suppress(OSError):
            return os.stat(path).st_size
        return 0
    total = 0
    for directory, _, names in os.walk(path):
        for name in names:
            with suppress(OSError):
                facts = os.lstat(os.path.join(directory, name))
                total += facts.st_size if stat.S_ISREG(facts.st_mode) else 0
    return total


def read_tree(path: str, complain: Callable[[str], None]) -> Iterator[bytes]:
    """A file or directory as a tree. What cannot be read is told to ``complain``."""
    yield from _read_entry(path, top_name(path), complain, follow=True)
    yield pack_entry(Entry("end"))


def _read_entry(path: str, name: str, complain: Callable[[str], None], *, follow: bool) -> Iterator[bytes]:
    try:
        facts = os.stat(path, follow_symlinks=follow)
        if stat.S_ISLNK(facts.st_mode):
            yield pack_entry(Entry("link", name, target=os.readlink(path)))
        elif stat.S_ISDIR(facts.st_mode):
            names = sorted(os.listdir(path))
            yield pack_entry(Entry("dir", name, facts.st_mode & 0o7777, facts.st_mtime_ns))
            for each in names:
                yield from _read_entry(os.path.join(path, each), f"{name}/{each}", complain, follow=False)
        elif stat.S_ISREG(facts.st_mode):
            yield from _read_file(path, name)
        else:
            complain(f"{path}: neither a file, a directory nor a link: left out")
    except (OSError, ValueError) as err:
        complain(f"{path}: {err.strerror if isinstance(err, OSError) else err}")


def _read_file(path: str, name: str) -> Iterator[bytes]:
    with open(path, "rb", buffering=0) as stream:
        facts = os.fstat(stream.fileno())
        left, crc = facts.st_size, 0
        yield pack_entry(Entry("file", name, facts.st_mode & 0o7777, facts.st_mtime_ns, left))
        problem = ""
        while left:
            data = b""
            if not problem:
                try:
                    data = stream.read(min(left, _BLOCK))
                    problem = "" if data else "became shorter while it was read"
                except OSError as err:
                    problem = err.strerror or "cannot be read"
            # The length was told: what is missing is filled up, and said to be bad.
            data = data or bytes(min(left, _BLOCK))
            crc = zlib.crc32(data, crc)
            left -= len(data)
            yield data
        yield pack_crc(crc)
        if problem:
            yield pack_entry(Entry("bad", name, error=problem))


class TreeWriter:
    """Writes one tree: into ``path`` if that is a directory (or ``into``), else as ``path``. Close it in any case."""

    def __init__(self, path: str, *, into: bool = False) -> None:
        """:raise HostError: there is no such directory."""
        self.bytes = 0
        self.files = 0
        self.complete = False
        self.problems: list[str] = []
        self._reader = TreeReader()
        self._shown = path
        self._final: str | None = None
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
        self._place = (-1, "", "")  # directory, temporary name and name of the file that is being written
        self._entry = Entry("end")
        self._dirs: list[Entry] = []

    def feed(self, data: bytes) -> None:
        """:raise HostError: it cannot be written. :raise ProtocolError: it is no tree."""
        try:
            for item in self._reader.feed(data):
                if isinstance(item, Content):
                    self._content(item)
                else:
                    self._take(item)
        except OSError as err:
            raise HostError(f"cannot write {printable(self._entry.name) or self._shown}") from err

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
        parts = check_name(entry.name)
        if entry.kind == "dir":
            self._dirs.append(entry)
        if len(parts) == 1:
            self._take_top(entry)
        elif self._top < 0:
            raise ProtocolError("a file below what is no directory")
        else:
            self._make(entry, self._open_dir(parts[1:-1]), parts[-1])

    def _take_top(self, entry: Entry) -> None:
        if self._top >= 0:
            raise ProtocolError("a second top")
        self._final = self._final or entry.name
        if entry.kind != "dir":
            self._make(entry, os.dup(self._parent), self._final)
            return
        try:
            self._top = os.open(self._final, _DIR, dir_fd=self._parent)
        except FileNotFoundError:
            self._temporary = _temporary_name()
            os.mkdir(self._temporary, 0o700, dir_fd=self._parent)
            self._top = os.open(self._temporary, _DIR, dir_fd=self._parent)

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
                os.close(os.open(name, _DIR, dir_fd=where))
                return
            temporary = _temporary_name()
            if entry.kind == "link":
                os.symlink(entry.target, temporary, dir_fd=where)
                try:
                    os.rename(temporary, name, src_dir_fd=where, dst_dir_fd=where)
                except OSError:
                    os.unlink(temporary, dir_fd=where)
                    raise
                return
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self._file = os.open(temporary, flags, 0o600, dir_fd=where)
            self._drop_place()
            self._place = (where, temporary, name)
            where = -1
        finally:
            if where >= 0:
                os.close(where)
        self._reserve(entry.size)

    def _reserve(self, size: int) -> None:
        """Whether there is room is known before it comes."""
        facts = os.fstatvfs(self._file)
        if size > facts.f_bavail * facts.f_frsize:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _content(self, content: Content) -> None:
        data = memoryview(content.data)
        self.bytes += len(data)
        while data:
            data = data[os.write(self._file, data) :]
        if not content.last:
            return
        where, temporary, name = self._place
        os.fchmod(self._file, self._entry.mode)
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
        self.problems.append(f"{printable(entry.name)}: {printable(entry.error)}")
        where, _, name = self._place
        if where >= 0 and name == (entry.name.rpartition("/")[2] if "/" in entry.name else self._final):
            os.unlink(name, dir_fd=where)
            self.files -= 1

    def _finish(self) -> None:
        for entry in reversed(self._dirs):
            fd = self._open_dir(check_name(entry.name)[1:])
            try:
                os.fchmod(fd, entry.mode)
                _set_time(fd, entry.mtime_ns)
            finally:
                os.close(fd)
        if self._temporary:
            assert self._final is not None
            os.rename(self._temporary, self._final, src_dir_fd=self._parent, dst_dir_fd=self._parent)
            self._temporary = ""
        self.complete = True

    def _drop_place(self) -> None:
        if self._place[0] >= 0:
            os.close(self._place[0])
        self._place = (-1, "", "")


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
