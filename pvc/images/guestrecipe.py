# SPDX-License-Identifier: Apache-2.0
"""Recipes that begin with ``from:`` an image: what is done in a guest of it, as data."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path

from pvc import codec
from pvc.config.yamlmarks import read_document
from pvc.errors import ConfigError, Problem
from pvc.images.image import Image, parse_uri
from pvc.images.recipe import RecipeFile, find_wrong_contents, read_files, read_scalars
from pvc.parse import parse_duration, parse_size

# Raised when the builder makes something else of the same recipe.
_BUILDER = 1
_MIB = 1 << 20
_MIN_MEMORY, _MAX_MEMORY = 128 * _MIB, 1 << 40


@dataclass(frozen=True)
class GuestRecipe:
    """What becomes of an image in its own guest: packages, then files, then commands, as root.

    ``base`` is the image (``from`` in the file). ``size``: the disk, larger than the base's; ``append``: words more
    on the kernel's command line, for images that are booted directly. ``timeout``: for all of it. ``memory`` and
    ``cores`` are the building guest's.
    """

    base: str
    description: str = ""
    packages: tuple[str, ...] = ()
    files: tuple[RecipeFile, ...] = ()
    commands: tuple[str, ...] = ()
    append: str = ""
    size: str | None = None
    hints: dict[str, str] = field(default_factory=dict)
    timeout: str = "1h"
    memory: str = "1G"
    cores: str = "2"

    @property
    def timeout_s(self) -> float:
        """The time limit in seconds."""
        return parse_duration(self.timeout)

    @property
    def memory_mib(self) -> int:
        """The guest's memory in MiB."""
        return parse_size(self.memory) // _MIB

    @property
    def size_bytes(self) -> int | None:
        """The disk's size, where the recipe says one."""
        return parse_size(self.size) if self.size else None

    def key(self, base: Image, *, flat: bool) -> str:
        """A checksum of all that goes in: the base image's content, the recipe with its files, and how it is kept."""
        parts = [_BUILDER, codec.dumps(self.without_name()), [each.sha256 for each in base.blobs], base.append, flat]
        return sha256(repr(parts).encode()).hexdigest()[:32]

    def without_name(self) -> GuestRecipe:
        """The recipe without what decides nothing: how the base is called, and what the guest may take meanwhile."""
        return replace(self, base="", timeout="1h", memory="1G", cores="1")


def load_guest_recipe(path: Path) -> GuestRecipe | None:
    """Read and check a recipe; None where it has no ``from``, so that it is one of packages alone.

    :raise ConfigError: something is wrong with it.
    """
    document = read_document(path)
    if document.problems or not isinstance(document.data, dict) or "from" not in document.data:
        # Who reads recipes of packages tells what is wrong.
        return None
    if "base" in document.data:
        raise ConfigError([Problem(document.file, document.line(("base",)), "base", "unknown: the image is in from")])
    data = {("base" if key == "from" else key): value for key, value in document.data.items()}
    if "extends" in data:
        text = "a recipe has either an image that it is from, or another recipe that it extends"
        raise ConfigError([Problem(document.file, document.line(("extends",)), "extends", text)])
    read_files(document, data)
    try:
        recipe = codec.from_data(GuestRecipe, read_scalars(data))
    except ValueError as err:
        raise ConfigError([Problem(os.fspath(path), 0, "", str(err))]) from None
    problems = [
        Problem(document.file, document.line((key,)), key, text) for key, text in _find_problems(recipe)
    ]  # fmt: skip
    if problems:
        raise ConfigError(problems)
    return recipe


def _find_problems(recipe: GuestRecipe) -> list[tuple[str, str]]:
    found = find_wrong_contents(recipe.packages, recipe.files)
    try:
        parse_uri(recipe.base)
    except ValueError as err:
        found.append(("from", str(err)))
    try:
        if not 1 <= recipe.timeout_s <= 7 * 86400:
            found.append(("timeout", f"{recipe.timeout} is not between 1s and 7d"))
    except ValueError as err:
        found.append(("timeout", str(err)))
    try:
        if not _MIN_MEMORY <= parse_size(recipe.memory) <= _MAX_MEMORY:
            found.append(("memory", f"{recipe.memory} is not between 128M and 1T"))
    except ValueError as err:
        found.append(("memory", str(err)))
    try:
        _ = recipe.size_bytes
    except ValueError as err:
        found.append(("size", str(err)))
    if not recipe.cores.isdecimal() or not 1 <= int(recipe.cores) <= 256:
        found.append(("cores", f"{recipe.cores!r} is not between 1 and 256"))
    for key, text in (("append", recipe.append), ("description", recipe.description)):
        if not text.isprintable():
            found.append((key, "must be one line"))
    return found
