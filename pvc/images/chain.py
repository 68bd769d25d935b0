# SPDX-License-Identifier: Apache-2.0
"""Disks that rest on others: a file of a repository that holds only what changed, and names the file below it.

The name is relative (``../xx/SHA256``), so it holds in any repository, for people's tools too. pvc never follows it:
the layers of a disk are those that the image's description lists, and a header must name just the one that is next.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

from pvc.images import header
from pvc.images.image import Blob, Image, Layer

# Each layer is one more file to open, and to look into for what those above it do not hold.
MAX_LAYERS = 8


def name_below(sha256: str) -> str:
    """How a file in data/ names another one."""
    return f"../{sha256[:2]}/{sha256}"


def backing_name(blob: Blob) -> str:
    """The same, by what it names."""
    return name_below(blob.sha256)


def backing_of(layer: Layer) -> header.Backing:
    """What the header of the file above ``layer`` must say."""
    return header.Backing(backing_name(layer.blob), layer.format)


def walk_layers(image: Image) -> Iterator[tuple[Layer, header.Backing | None]]:
    """Each layer, lowest first, and what its header must name."""
    layers = image.layers
    yield layers[0], None
    for lower, upper in pairwise(layers):
        yield upper, backing_of(lower)


def find_wrong_header(image: Image, path_of: Callable[[Blob], Path]) -> str | None:
    """Which layer is not the disk that the description says, or names another file than the layer below it."""
    for layer, backing in walk_layers(image):
        path = path_of(layer.blob)
        try:
            with path.open("rb") as stream:
                head = stream.read(header.PROBE_SIZE)
        except OSError as err:
            return f"{path}: {os.strerror(err.errno or 0)}"
        problem = check_head(layer, backing, head)
        if problem:
            return f"{path}: {problem}"
    return None


def check_head(layer: Layer, backing: header.Backing | None, head: bytes) -> str | None:
    """What is wrong with the first bytes of a layer."""
    try:
        facts = header.parse_header(head, layer.blob.size, layer.format, backing=backing)
    except header.HeaderError as err:
        return str(err)
    return None if facts.size == layer.size else f"a disk of {facts.size} bytes instead of {layer.size}"
