"""What a repository knows of an image, and how an image is named."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum

from pvc.parse import parse_name

_SHA256 = re.compile(r"^[0-9a-f]{64}$")
_REVISION = re.compile(r"^[1-9][0-9]{0,8}$")
MAX_REVISION = 999_999_999


class Format(StrEnum):
    """Disk formats that pvc stores; both can back a qcow2 overlay."""

    QCOW2 = "qcow2"
    RAW = "raw"


@dataclass(frozen=True)
class Blob:
    """A file of a repository, named by the SHA-256 of its content; ``size`` is the file's, in bytes."""

    sha256: str
    size: int

    def __post_init__(self) -> None:
        """:raise ValueError: the checksum would not be a safe file name, or the size is negative."""
        if _SHA256.fullmatch(self.sha256) is None or self.size < 0:
            raise ValueError(f"{self.sha256[:70]!r} ({self.size} bytes) is not a blob")


@dataclass(frozen=True)
class ImageUri:
    """``[repository:]name[@revision]``; without a revision the newest is meant."""

    name: str
    repository: str | None = None
    revision: int | None = None

    def __str__(self) -> str:
        repository = f"{self.repository}:" if self.repository else ""
        return f"{repository}{self.name}" + (f"@{self.revision}" if self.revision else "")


@dataclass(frozen=True)
class Image:
    """One revision of an image. ``size`` is the guest's disk in bytes, ``created`` seconds since the epoch.

    With a ``kernel`` the guest is booted directly, with ``append`` as its command line; else by the boot
    loader on the disk. ``hints`` tell people how to use it (``user``: whom to log in as).
    """

    name: str
    revision: int
    created: float
    owner: str
    format: Format
    size: int
    disk: Blob
    kernel: Blob | None = None
    initrd: Blob | None = None
    append: str = ""
    description: str = ""
    hints: dict[str, str] = field(default_factory=dict)

    @property
    def blobs(self) -> tuple[Blob, ...]:
        """All files that the image consists of."""
        return tuple(blob for blob in (self.disk, self.kernel, self.initrd) if blob is not None)

    @property
    def stored_size(self) -> int:
        """Bytes of all its files."""
        return sum(blob.size for blob in self.blobs)

    def __str__(self) -> str:
        return f"{self.name}@{self.revision}"


def parse_uri(text: str) -> ImageUri:
    """The image named by ``[repository:]name[@revision]``.

    :raise ValueError: malformed.
    """
    repository, colon, rest = text.rpartition(":")
    name, at, revision = rest.partition("@")
    try:
        if colon:
            parse_name(repository)
        parse_name(name)
        if at and _REVISION.fullmatch(revision) is None:
            raise ValueError(f"{revision!r} is not a revision")
    except ValueError as err:
        raise ValueError(f"{text!r} is not an image such as debian, debian@2 or site:debian: {err}") from None
    return ImageUri(name, repository or None, int(revision) if at else None)
