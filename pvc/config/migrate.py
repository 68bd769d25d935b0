# SPDX-License-Identifier: Apache-2.0
"""What becomes of the files of a site of pcocc's, or of one of its users: pvc's files, and what is other in them.

Keys that pcocc has keep their names and meanings in pvc, so most is taken as it stands. What is wrong in the old files
stays wrong in the new ones, where pvc's own check finds it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from pvc.config import drives, networks, repos, templates
from pvc.config.emit import Written, emit
from pvc.config.hostnetworks import MAX_TAP_PREFIX
from pvc.config.setting import Table
from pvc.config.yamlmarks import Document, KeyPath, format_path
from pvc.errors import Problem
from pvc.texts import clean_text

# Of pcocc: what is said of a type of networks that pvc has not.
_LOST_TYPES = {
    "infiniband": "InfiniBand with partitions of each cluster's own",
    "ib": "InfiniBand with partitions of each cluster's own",
    "host-infiniband": "the nodes' own InfiniBand partitions",
    "hostib": "the nodes' own InfiniBand partitions",
    "pv": "a type that pcocc itself no longer recommends: ethernet with network-layer L2 is the same",
    "nat": "a type that pcocc itself no longer recommends: ethernet with network-layer L3 is the same",
}
_MACHINE = "pc"
# Who has no repos.yaml has this one.
_OWN = ("user", "%{homedir}/.pvc/images")
_REVISION = re.compile(r"^(.*[^/])@([0-9]{1,8})$")
# What a value of an idle key says that pvc does in any case.
_AS_HERE: dict[str, tuple[Any, ...]] = {"emulator-cores": (0,), "full-node": (False,), "bind-vcpus": (True,)}


@dataclass(frozen=True)
class Note:
    """One thing that is other than in pcocc's files, at its place there; ``lost``: it has no counterpart."""

    place: Problem
    lost: bool


@dataclass(frozen=True)
class Draft:
    """A file in the making: its data, and the comments that it gets at which keys."""

    document: Document
    data: Any
    comments: dict[KeyPath, list[str]] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)

    def change(self, path: KeyPath, text: str, command: str = "", *, at: KeyPath | None = None) -> None:
        """Say at a key what is other about it, and what is to be done; ``at``: where it is in the new file."""
        self._note(path, f"{text} {command}".rstrip(), lost=False)
        texts = [clean_text(text), *([clean_text(command)] if command else [])]
        self.comments.setdefault(at or path, []).extend(texts)

    def lose(self, path: KeyPath, text: str) -> None:
        """Say above what is around it that a key, or an item, was left out."""
        self._note(path, text, lost=True)
        name = path[-1] if isinstance(path[-1], str) else format_path(path[-2:])
        self.comments.setdefault(path[:-1], []).append(clean_text(f"{name} is left out: {text}"))

    def _note(self, path: KeyPath, text: str, *, lost: bool) -> None:
        self.notes.append(Note(Problem(self.document.file, self.document.line(path), format_path(path), text), lost))

    def drop_idle(self, table: Table, value: dict[str, Any], path: KeyPath) -> None:
        """Leave out what ``table`` knows of and has no use for."""
        for key, reason in {**table.idle, **table.foreign}.items():
            if key not in value:
                continue
            given = value.pop(key)
            if given is not None and plain(given) not in _AS_HERE.get(key, ()):
                self.lose((*path, key), reason)

    def emit(self) -> str:
        """The new file."""
        return emit(self.data, {**self.comments, (): [f"Made of {self.document.file}.", *self.comments.get((), [])]})


def plain(value: Any) -> Any:
    """A number as such."""
    return int(value) if isinstance(value, Written) and value.isdecimal() else value


def start_draft(document: Document) -> Draft:
    """The data as it stands, numbers as they are written."""
    return Draft(document, _copy(document.data, (), document.written))


def _copy(value: Any, path: KeyPath, written: Mapping[KeyPath, str]) -> Any:
    if isinstance(value, dict):
        return {key: _copy(item, (*path, key), written) for key, item in value.items()}
    if isinstance(value, list):
        return [_copy(item, (*path, index), written) for index, item in enumerate(value)]
    return Written(written[path]) if path in written else value


def _entries(draft: Draft) -> list[tuple[str, dict[str, Any]]]:
    data = draft.data if isinstance(draft.data, dict) else {}
    return [(name, value) for name, value in data.items() if isinstance(value, dict)]


def migrate_batch(document: Document) -> Draft:
    """batch.yaml."""
    draft = start_draft(document)
    data = draft.data if isinstance(draft.data, dict) else {}
    if data.get("type") == "local":
        document.add(("type",), "pvc starts VMs in jobs of Slurm's: a single machine has a testbed (pvc testbed up)")
    settings = data.get("settings")
    if isinstance(settings, dict):
        if settings.get("etcd-auth-type") == "munge":
            settings["etcd-auth-type"] = "password"
            draft.change(("settings", "etcd-auth-type"), "It was munge, which etcd 3 does not know.")
        if "etcd-servers" in settings:
            draft.change(
                ("settings", "etcd-servers"),
                "pvc speaks etcd 3 and keeps its keys below /pvc; those of pcocc are of version 2 of the protocol.",
            )
    return draft


def migrate_networks(document: Document) -> tuple[Draft, frozenset[str]]:
    """networks.yaml, and the names of networks that have no counterpart."""
    draft, lost = start_draft(document), set()
    for name, entry in _entries(draft):
        kind, settings = entry.get("type"), entry.get("settings")
        if isinstance(kind, str) and kind not in networks.TYPES and kind in _LOST_TYPES:
            draft.lose((name,), f"type {kind}: {_LOST_TYPES[kind]}")
            del draft.data[name]
            lost.add(name)
            continue
        table = networks.TYPES.get(kind) if isinstance(kind, str) else None
        if table is None or not isinstance(settings, dict):
            continue
        path = (name, "settings")
        draft.drop_idle(table, settings, path)
        prefix = settings.get("tap-prefix")
        if isinstance(prefix, str) and len(prefix) > MAX_TAP_PREFIX:
            short = prefix[: MAX_TAP_PREFIX - 1] + prefix[-1]
            draft.change((*path, "tap-prefix"), f"Devices are called {short}.…: numbers of job and VM need the room.")
        layer = settings.get("network-layer")
        if table is networks.ETHERNET and layer in (None, "L3") and settings.get("domain-name") is None:
            draft.change(
                path, "VMs were called vmN.pcocc.DOMAIN of the node; without domain-name it is vmN.pvc.internal."
            )
    return draft, frozenset(lost)


def migrate_resources(document: Document, lost: frozenset[str]) -> Draft:
    """resources.yaml; ``lost`` are networks that are there no more."""
    draft = start_draft(document)
    for name, entry in _entries(draft):
        found = entry.get("networks")
        if not isinstance(found, list):
            continue
        for index, network in enumerate(found):
            if network in lost:
                draft.lose((name, "networks", index), f"network {network} has no counterpart, and VMs lack it")
        entry["networks"] = [network for network in found if network not in lost]
    return draft


def migrate_templates(document: Document, is_file: Callable[[str], bool]) -> Draft:
    """templates.yaml, or a file of templates.d; ``is_file`` tells whether a path beside it is one."""
    draft = start_draft(document)
    mounted = False
    for name, entry in _entries(draft):
        path = (name,)
        draft.drop_idle(templates.ENTRY, entry, path)
        _migrate_image(draft, entry, path)
        _migrate_machine(draft, entry, path)
        for key in ("user-data", "kernel"):
            _migrate_path(draft, entry, (*path, key), is_file)
        found = entry.get("persistent-drives")
        for index, drive in enumerate(found if isinstance(found, list) else []):
            for where, values in drive.items() if isinstance(drive, dict) else ():
                if isinstance(values, dict):
                    draft.drop_idle(drives.ENTRY, values, (*path, "persistent-drives", index, where))
        if entry.get("mount-points") and not mounted:
            mounted = True
            draft.change(
                (*path, "mount-points"),
                "Guests mount them at boot, at /mnt/NAME or where a target says; none of it is left to user-data.",
            )
    return draft


def _migrate_image(draft: Draft, entry: dict[str, Any], path: KeyPath) -> None:
    image = entry.get("image")
    if image is False:
        entry["image"] = None
    if not isinstance(image, str) or isinstance(image, Written):
        return
    place = (*path, "image")
    if "/" in image:
        name = PurePosixPath(image).name
        entry["image"] = name
        text = f"It was the directory {image}. The image in it, image or image-revN with the largest N, comes by:"
        draft.change(place, text, f"pvc image import {image}/image {name}")
    elif (match := _REVISION.match(image)) is not None:
        entry["image"] = f"{match[1]}@{int(match[2]) + 1}"
        draft.change(
            place, f"It was {image}: revisions begin with 1, and pvc image import --from-pcocc counts so, too."
        )


def _migrate_machine(draft: Draft, entry: dict[str, Any], path: KeyPath) -> None:
    """The machine of guests that were installed on it stays what it was."""
    if entry.get("machine-type") is not None or ("machine-type" not in entry and entry.get("inherits") is not None):
        return
    entry["machine-type"] = _MACHINE
    draft.change(
        (*path, "machine-type"), f"{_MACHINE} was the default; pvc's is q35, which guests of today take as well."
    )


def _migrate_path(draft: Draft, entry: dict[str, Any], path: KeyPath, is_file: Callable[[str], bool]) -> None:
    """A file that lay beside the old ones stays there."""
    value = entry.get(str(path[-1]))
    if not isinstance(value, str) or "\n" in value or value.startswith(("/", "~", "%", "#")) or not is_file(value):
        return
    entry[str(path[-1])] = str(PurePosixPath(draft.document.file).parent / value)
    draft.change(path, f"It was {value}, beside the old file: it is read from there.")


def migrate_repos(document: Document, *, is_site: bool) -> Draft:
    """repos.yaml: each repository gets a new place, for the old ones stay what pcocc understands."""
    draft = start_draft(document)
    if not isinstance(draft.data, dict):
        return draft
    draft.drop_idle(repos.FILE, draft.data, ())
    found = draft.data.get("repos")
    kept: list[Any] = []
    for index, entry in enumerate(found if isinstance(found, list) else []):
        kept.append(entry)
        where = entry.get("path") if isinstance(entry, dict) else None
        if not isinstance(where, str) or isinstance(where, Written):
            continue
        moved = where.replace("/.pcocc/", "/.pvc/")
        entry["path"] = moved if moved != where else f"{where.rstrip('/')}.pvc"
        name, path = entry.get("name"), ("repos", index, "path")
        text, command = f"It was {where}. Its images come by:", f"pvc image import --from-pcocc {where} -R {name}"
        if is_site and (name, entry["path"]) == _OWN:
            kept.pop()
            draft.change(path, "Each user has a repository called user without any line. Its images come by:",
                         command.replace("%{homedir}", "~"), at=("repos",))  # fmt: skip
        else:
            draft.change(path, text, command, at=("repos", len(kept) - 1, "path"))
    if isinstance(found, list):
        draft.data["repos"] = kept
    return draft
