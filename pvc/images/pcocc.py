# SPDX-License-Identifier: Apache-2.0
"""Repositories of pcocc's, read: what images and revisions they have, of which files.

    .config              version: 1 or 2
    data/xx/SHA256       files, named by their content, as pvc has them
    meta/NAME@REV        version 2: one revision
    meta/xx/SHA256       version 1: the same, named by the SHA-256 of name and revision

A revision lists its files, the lowest layer first. Revisions begin with 0. Whoever wrote that may be hostile: nothing
is followed, and what does not fit is named and left.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from pvc.beneath import open_beneath
from pvc.config.yamlmarks import parse_document
from pvc.errors import UsageError
from pvc.images.image import MAX_REVISION
from pvc.images.scratch import is_sha256
from pvc.parse import parse_name
from pvc.texts import clean_text

_VERSIONS = (1, 2)
_MAX_META = 1 << 20
_NAMED = re.compile(r"^(.+)@([0-9]{1,9})$")
_HASHED = re.compile(r"^[0-9a-f]{2}$")
_MAX_OWNER = 64


@dataclass(frozen=True)
class PcoccRevision:
    """One revision: ``blobs`` are the SHA-256 of its layers, lowest first; ``created`` in seconds since the epoch."""

    name: str
    revision: int
    owner: str
    created: float
    blobs: tuple[str, ...]
    description: str = ""

    def __str__(self) -> str:
        return f"{self.name}@{self.revision}"


@dataclass(frozen=True)
class Left:
    """An image, or a file that describes one, that cannot be taken; ``expected``: as no container image can."""

    what: str
    why: str
    expected: bool = False


@dataclass(frozen=True)
class PcoccRepository:
    """What a repository has: revisions by image, ascending, and what cannot be read."""

    path: Path
    images: dict[str, tuple[PcoccRevision, ...]]
    left: tuple[Left, ...]

    def blob_path(self, blob: str) -> Path:
        """Where a file is, whether or not it is there."""
        return self.path / "data" / blob[:2] / blob


def read_repository(path: Path) -> PcoccRepository:
    """Read all descriptions of a repository; no file of an image is opened.

    :raise UsageError: it is none of pcocc's.
    """
    try:
        base = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as err:
        raise UsageError(f"cannot read {path}") from err
    try:
        _check_version(base, path)
        found: dict[str, list[PcoccRevision]] = {}
        left: list[Left] = []
        for name in sorted(_walk(base, path)):
            try:
                revision = _parse(name, _read(base, f"meta/{name}"))
            except _ContainerError as err:
                left.append(Left(str(err), "is a container image, and pvc's repositories hold disks", expected=True))
            except (OSError, ValueError) as err:
                why = err.strerror if isinstance(err, OSError) and err.strerror else str(err)
                left.append(Left(clean_text(f"meta/{name}"), why))
            else:
                known = found.setdefault(revision.name, [])
                if revision.revision not in [each.revision for each in known]:
                    known.append(revision)
                elif revision not in known:
                    left.append(Left(clean_text(f"meta/{name}"), f"says other things of {revision} than another file"))
    finally:
        os.close(base)
    images = {name: tuple(sorted(each, key=lambda one: one.revision)) for name, each in sorted(found.items())}
    return PcoccRepository(path, images, tuple(left))


class _ContainerError(ValueError):
    pass


def _check_version(base: int, path: Path) -> None:
    try:
        data = parse_document(".config", _read(base, ".config")).data
    except (OSError, ValueError) as err:
        raise UsageError(f"{path} is no image repository of pcocc's: it has no .config that can be read") from err
    version = data.get("version") if isinstance(data, dict) else None
    if version not in _VERSIONS:
        raise UsageError(f"{path}: repositories of pcocc's have version 1 or 2, and this one says {str(version)[:40]}")


def _walk(base: int, path: Path) -> Iterator[str]:
    """The names of descriptions below meta/, of both versions: repositories may have some of the older one left."""
    try:
        for name in _list(base, "meta"):
            if _HASHED.fullmatch(name):
                yield from (f"{name}/{each}" for each in _list(base, f"meta/{name}"))
            elif not name.startswith("."):
                yield name
    except OSError as err:
        raise UsageError(f"cannot read {path}/meta") from err


def _list(base: int, name: str) -> list[str]:
    fd = open_beneath(base, name, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return os.listdir(fd)
    finally:
        os.close(fd)


def _read(base: int, name: str) -> bytes:
    with os.fdopen(open_beneath(base, name), "rb") as stream:
        content = stream.read(_MAX_META + 1)
    if len(content) > _MAX_META:
        raise ValueError(f"is larger than {_MAX_META >> 20} MiB")
    return content


def _parse(file: str, content: bytes) -> PcoccRevision:
    """What a description says; JSON is YAML, too.

    :raise ValueError: it is no description of a disk, or of another one than its name says.
    """
    document = parse_document(file, content)
    data = document.data
    if document.problems or not isinstance(data, dict):
        raise ValueError("is no description of an image")
    if file.endswith(".json") and "disk" in data:
        raise ValueError("is pvc's own: name the repository in repos.yaml, or copy its images (pvc image copy)")
    name, revision, kind = (data.get(key) for key in ("name", "revision", "kind"))
    if not isinstance(name, str) or not isinstance(revision, int) or not 0 <= revision < MAX_REVISION:
        raise ValueError("names no image and revision")
    hashed, _, rest = file.partition("/")
    fits = sha256(f"{name}\n{revision}".encode("ascii", "ignore")).hexdigest() == rest and rest.startswith(hashed)
    if not fits and not ((match := _NAMED.fullmatch(file)) and (match[1], int(match[2])) == (name, revision)):
        raise ValueError(f"describes {clean_text(name[:80])}@{revision}, which is not its name")
    if kind != "vm":
        if kind == "ctr":
            raise _ContainerError(f"{clean_text(name[:80])}@{revision}")
        raise ValueError(f"is of the kind {clean_text(str(kind)[:40])!r}, which is unknown")
    parse_name(name)
    blobs = data.get("data_blobs")
    if not isinstance(blobs, list) or not blobs or not all(isinstance(each, str) and is_sha256(each) for each in blobs):
        raise ValueError("lists no files by their SHA-256")
    return PcoccRevision(
        name, revision, _text(data.get("owner"))[:_MAX_OWNER], _time(data.get("timestamp")), tuple(blobs),
        _text(data.get("description")),
    )  # fmt: skip


def _text(value: Any) -> str:
    return clean_text(value[:1000]) if isinstance(value, str) else ""


def _time(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and 0 <= value < 1 << 36 else 0.0
