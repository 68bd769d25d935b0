# SPDX-License-Identifier: Apache-2.0
"""Recipes of images: what ``pvc image build`` makes, as data.

A recipe is a YAML file: pvc's own are in ``templates/``, a site writes its own beside them or anywhere. One may
extend another: then it says only what is more.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import sha256
from pathlib import Path
from typing import Any

from pvc import codec
from pvc.config.share import find_share
from pvc.config.yamlmarks import Document, read_document
from pvc.errors import ConfigError, Problem, UsageError
from pvc.parse import parse_size

# Debian policy 5.6.7 and 5.6.10; a release too goes into command lines and URIs' paths.
_PACKAGE = re.compile(r"^[a-z0-9][a-z0-9+.-]{1,100}(:[a-z0-9]+)?$")
_SUITE = re.compile(r"^[a-z][a-z0-9-]{1,40}$")
_MIN_SIZE, _MAX_SIZE = 256 << 20, 1 << 44
_MAX_FILE = 4 << 20


class Builder(StrEnum):
    """What installs a recipe's packages."""

    MMDEBSTRAP = "mmdebstrap"
    MKOSI = "mkosi"


@dataclass(frozen=True)
class RecipeFile:
    """A file of the guest; ``mode`` in octal digits. ``link`` makes it a symbolic link instead.

    In a recipe ``source`` can stand for ``content``: a text file beside the recipe.
    """

    path: str
    content: str = ""
    mode: str = "0644"
    link: str | None = None


@dataclass(frozen=True)
class Initrd:
    """The small initial file system that pvc makes: modules to load before the root is mounted, in this order.

    ``others`` are loaded after them where the root is on another disk than virtio's.
    """

    modules: tuple[str, ...]
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class Variant:
    """What is different for one release: what to add, and packages to leave out."""

    packages: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    files: tuple[RecipeFile, ...] = ()
    commands: tuple[str, ...] = ()
    append: str = ""


@dataclass(frozen=True)
class Recipe:
    """How to make an image from packages of a Debian release.

    ``exclude``: paths that dpkg does not unpack, now and in the guest later; ``include``: exceptions.
    ``files`` are written, then ``commands`` run in the guest by its shell, after the packages are installed.
    ``size`` is the guest's disk. ``initrd`` null: the one that the kernel package made. ``boot`` kernel: QEMU starts
    the kernel, and all of the disk is the root; uefi: the disk's own boot loader does, by UEFI firmware.
    ``builder`` installs the packages of this recipe and of those that it extends.
    """

    description: str
    suite: str
    packages: tuple[str, ...]
    append: str
    size: str = "8G"
    components: tuple[str, ...] = ("main",)
    exclude: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    files: tuple[RecipeFile, ...] = ()
    commands: tuple[str, ...] = ()
    initrd: Initrd | None = None
    boot: str = "kernel"
    builder: Builder = Builder.MMDEBSTRAP
    hints: dict[str, str] = field(default_factory=dict)
    variants: dict[str, Variant] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        """The guest's disk in bytes."""
        return parse_size(self.size)

    def digest(self) -> str:
        """A checksum of everything that the recipe says."""
        return sha256(codec.dumps(self).encode()).hexdigest()


def find_recipe(name: str) -> Path:
    """The file of a recipe: a path (with a "/" or ending in .yaml), or a name in pvc's own templates.

    :raise UsageError: there is none.
    """
    if _is_path(name):
        path = Path(name)
        if not path.is_file():
            raise UsageError(f"there is no recipe {name}")
        return path
    templates = find_share() / "templates"
    path = templates / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(each.stem for each in templates.glob("*.yaml"))) or "none"
        raise UsageError(f"there is no recipe {name!r} (known: {known})", hint="a recipe of your own: ./NAME.yaml")
    return path


def _is_path(name: str) -> bool:
    return "/" in name or name.endswith(".yaml")


def load_recipe(path: Path, *, suite: str | None = None) -> Recipe:
    """Read and check a recipe with all that it extends, for ``suite`` or the release that it names.

    :raise ConfigError: something is wrong with it, or with one that it extends.
    """
    return join_recipes(load_lineage(path, suite=suite))


def load_lineage(path: Path, *, suite: str | None = None, builder: Builder | None = None) -> tuple[Recipe, ...]:
    """What each file says itself: first the recipe that extends no other, last that of ``path``.

    ``builder`` is in place of what they say; else the last of them that says one decides for all.

    :raise ConfigError: something is wrong with one of them.
    """
    documents = _read_documents(path)
    release = suite or next((str(each.data["suite"]) for each in documents if each.data.get("suite")), None)
    found: list[Recipe] = []
    for document in reversed(documents):
        own = _read_layer(document, join_recipes(found) if found else None, release)
        problems = [Problem(document.file, document.line((key,)), key, text) for key, text in _find_problems(own)]
        if problems:
            raise ConfigError(problems)
        found.append(own)
    said = [own.builder for own, document in zip(found, reversed(documents), strict=True) if "builder" in document.data]
    chosen = builder or (said[-1] if said else Builder.MMDEBSTRAP)
    return tuple(dataclasses.replace(own, builder=chosen) for own in found)


def join_recipes(lineage: Sequence[Recipe]) -> Recipe:
    """All of them as one recipe."""
    return functools.reduce(_join, lineage)


def plan_stages(lineage: Sequence[Recipe]) -> tuple[Recipe, ...]:
    """What can be done one after the other, each on the result of those before.

    A recipe that says what dpkg unpacks, where packages come from, or another text for a file, means the packages and
    commands before it too: these are one stage.
    """
    stages: list[Recipe] = []
    for own in lineage:
        if stages and (own.exclude or own.include or own.components != stages[-1].components or _replaces(own, stages)):
            stages = [join_recipes([*stages, own])]
        else:
            stages.append(own)
    return tuple(stages)


def _replaces(own: Recipe, others: Sequence[Recipe]) -> bool:
    paths = {file.path for other in others for file in other.files}
    return any(file.path in paths for file in own.files)


def _read_documents(path: Path) -> list[Document]:
    """The files of a recipe and of what it extends, that one last.

    :raise ConfigError: one cannot be read, is not there, or extends itself.
    """
    found: list[Document] = []
    seen: list[Path] = []
    while True:
        document = read_document(path)
        if document.problems:
            raise ConfigError(document.problems)
        if not isinstance(document.data, dict):
            raise ConfigError([Problem(str(path), 0, "", "a recipe is a mapping")])
        found.append(document)
        seen.append(path.resolve())
        if "extends" not in document.data:
            return found
        parent = document.data["extends"]
        try:
            if not isinstance(parent, str):
                raise UsageError("is not the name of a recipe, nor a path such as ./other.yaml")
            # A path is meant from where it is written.
            path = find_recipe(os.fspath(path.parent / parent) if _is_path(parent) else parent)
        except UsageError as err:
            raise ConfigError([Problem(document.file, document.line(("extends",)), "extends", str(err))]) from None
        if path.resolve() in seen:
            circle = " -> ".join(each.name for each in [*seen[seen.index(path.resolve()) :], path])
            text = f"a recipe cannot extend itself: {circle}"
            raise ConfigError([Problem(document.file, document.line(("extends",)), "extends", text)])


def _read_layer(document: Document, parent: Recipe | None, suite: str | None) -> Recipe:
    """What one file says; it has the scalars of ``parent`` where it says nothing."""
    data = {key: value for key, value in document.data.items() if key != "extends"}
    read_files(document, data)
    if parent is not None:
        said = {"description": parent.description, "suite": parent.suite, "size": parent.size, "boot": parent.boot}
        data = said | {"packages": [], "append": ""} | data
    try:
        own = codec.from_data(Recipe, read_scalars(data))
    except ValueError as err:
        raise ConfigError([Problem(document.file, 0, "", str(err))]) from None
    return _for_suite(own, suite or own.suite)


def _join(parent: Recipe, own: Recipe) -> Recipe:
    """Both: lists one after the other; ``own`` wins where there can be only one."""
    mine = {file.path for file in own.files}
    return dataclasses.replace(
        own,
        packages=tuple(dict.fromkeys(parent.packages + own.packages)),
        append=f"{parent.append} {own.append}".strip(),
        components=tuple(dict.fromkeys(parent.components + own.components)),
        exclude=parent.exclude + own.exclude,
        include=parent.include + own.include,
        files=(*(file for file in parent.files if file.path not in mine), *own.files),
        commands=parent.commands + own.commands,
        initrd=own.initrd or parent.initrd,
        hints=parent.hints | own.hints,
    )


def read_files(document: Document, data: dict[str, Any]) -> None:
    """Put the content of files beside the recipe, which it names by ``source``, where it says ``content`` elsewhere.

    :raise ConfigError: one cannot be read, is too large, or is no text.
    """
    problems = []
    for index, entry in enumerate(_list_files(data)):
        if not isinstance(entry, dict) or "source" not in entry:
            continue
        source = entry.pop("source")
        place = document.line(("files", index))
        if not isinstance(source, str) or "content" in entry or "link" in entry:
            problems.append(Problem(document.file, place, "files", "a file has one of source, content and link"))
            continue
        path = Path(document.file).parent / source
        try:
            with path.open("rb") as stream:
                content = stream.read(_MAX_FILE + 1)
                entry.setdefault("mode", "0755" if os.fstat(stream.fileno()).st_mode & 0o100 else "0644")
            if len(content) > _MAX_FILE:
                raise ValueError(f"it has more than {_MAX_FILE >> 20} MiB")
            entry["content"] = content.decode()
        except OSError as err:
            problems.append(Problem(document.file, place, "files", f"cannot read {path}: {err.strerror}"))
        except ValueError as err:
            text = "it is no text in UTF-8" if isinstance(err, UnicodeDecodeError) else str(err)
            problems.append(Problem(document.file, place, "files", f"{path}: {text}"))
    if problems:
        raise ConfigError(problems)


def _list_files(data: dict[str, Any]) -> list[Any]:
    """What stands under ``files``; anything but a list is refused with the rest of the recipe."""
    found = data.get("files")
    return found if isinstance(found, list) else []


def read_scalars(data: dict[str, Any]) -> dict[str, Any]:
    """Scalars as text: YAML makes a number of an unquoted 0644 (octal) or 8."""
    for entry in _list_files(data):
        if isinstance(entry, dict) and isinstance(entry.get("mode"), int):
            entry["mode"] = f"{entry['mode']:04o}"
    result: dict[str, Any] = json.loads(json.dumps(data), parse_int=str, parse_float=str)
    return result


def _for_suite(recipe: Recipe, suite: str) -> Recipe:
    variant = recipe.variants.get(suite, Variant())
    packages = [name for name in recipe.packages if name not in variant.without]
    return dataclasses.replace(
        recipe,
        suite=suite,
        packages=(*packages, *variant.packages),
        files=recipe.files + variant.files,
        commands=recipe.commands + variant.commands,
        append=f"{recipe.append} {variant.append}".strip(),
        variants={},
    )


def _find_problems(recipe: Recipe) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    if _SUITE.fullmatch(recipe.suite) is None:
        found.append(("suite", f"{recipe.suite!r} is not a release such as bookworm"))
    if recipe.boot not in {"kernel", "uefi"}:
        found.append(("boot", f"{recipe.boot!r} is neither kernel nor uefi"))
    found += find_wrong_contents(recipe.packages, recipe.files)
    try:
        if not _MIN_SIZE <= recipe.size_bytes <= _MAX_SIZE:
            found.append(("size", f"{recipe.size} is not between 256M and 16T"))
    except ValueError as err:
        found.append(("size", str(err)))
    for pattern in (*recipe.exclude, *recipe.include):
        if not pattern.startswith("/") or "\n" in pattern:
            found.append(("exclude", f"{pattern!r} is not a path pattern such as /usr/share/doc/*"))
    if not recipe.append.isprintable():
        found.append(("append", "must be one line"))
    return found


def find_wrong_contents(packages: Sequence[str], files: Sequence[RecipeFile]) -> list[tuple[str, str]]:
    """Keys, and what is wrong with their values."""
    found = [("packages", f"{name!r} is not a package's name") for name in packages if not _PACKAGE.fullmatch(name)]
    for file in files:
        if not file.path.startswith("/") or ".." in file.path.split("/") or not file.path.isprintable():
            found.append(("files", f"{file.path!r} is not an absolute path"))
        if re.fullmatch(r"0?[0-7]{3}", file.mode) is None:
            found.append(("files", f"{file.path}: mode {file.mode!r} is not octal such as 0644"))
    return found
