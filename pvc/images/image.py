# SPDX-License-Identifier: Apache-2.0
"""What a repository knows of an image, and how an image is named."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field
from enum import StrEnum

from pvc.parse import parse_name

_SHA256 = re.compile(r"^[0-9a-f]{64}$")
_REVISION = re.compile(r"^[1-9][0-9]{0,8}$")
_MAX_TIME = 1 << 37  # the years beyond 6000
MAX_REVISION = 999_999_999
# More than pvc ever makes (chain.MAX_LAYERS): what else a description may claim.
_MAX_BELOW = 64


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
class Layer:
    """A disk that another one reads from where it holds nothing itself; ``size`` as a guest sees it, in bytes."""

    blob: Blob
    format: Format
    size: int


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
    loader on the disk. ``hints`` tell people how to use it (``user``: whom to log in as). ``below``: the layers
    that the disk rests on, lowest first, for an image that holds only what changed.
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
    below: tuple[Layer, ...] = ()

    def __post_init__(self) -> None:
        """:raise ValueError: its layers cannot be a chain, or its date is none that a calendar has."""
        if not 0 <= self.created < _MAX_TIME:
            raise ValueError("it was made at no time that there is")
        layers = self.layers
        if len(layers) > _MAX_BELOW or len({each.blob.sha256 for each in layers}) < len(layers):
            raise ValueError(f"{len(layers)} layers, or one of them twice, are no disk")
        for lower, upper in itertools.pairwise(layers):
            if upper.format is not Format.QCOW2 or upper.size < lower.size:
                raise ValueError(f"{upper.blob.sha256} cannot rest on {lower.blob.sha256}")

    @property
    def layers(self) -> tuple[Layer, ...]:
        """All layers of the disk, lowest first, the disk last."""
        return (*self.below, Layer(self.disk, self.format, self.size))

    @property
    def blobs(self) -> tuple[Blob, ...]:
        """All files that the image consists of."""
        found = (*(each.blob for each in self.layers), self.kernel, self.initrd)
        return tuple(blob for blob in found if blob is not None)

    def is_raw(self, blob: Blob) -> bool:
        """Whether a file of the image is a raw disk, which has holes where it is zero."""
        return any(each.blob == blob and each.format is Format.RAW for each in self.layers)

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
