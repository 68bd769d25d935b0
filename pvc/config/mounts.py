# SPDX-License-Identifier: Apache-2.0
"""Directories of the host in VMs: the key mount-points, and the option --mount."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from pvc.config import setting
from pvc.config.setting import Kind, Scope, Setting, Table
from pvc.errors import UsageError
from pvc.model.vm import Mount
from pvc.parse import expand_home

# virtio-9p's tags have 32 bytes with the last 0; the guest's shell reads tag and directory as words.
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,30}", re.ASCII)
_TARGET = re.compile(r"(?:/[A-Za-z0-9._@%+=~-]+)+", re.ASCII)
MAX_MOUNTS = 16
_TYPES = {"9p": "9p", "virtio-9p": "9p", "virtiofs": "virtiofs", "virtio-fs": "virtiofs"}
_OPTION_HINT = "--mount HOSTDIR:GUESTDIR[:ro][:type=virtiofs] or --mount NAME=HOSTDIR[,ro][,type=virtiofs]"

ENTRY = Table(
    settings=(
        Setting(
            "path",
            setting.path(expected="a directory's path", at_start=True),
            "The directory on the node.",
            required=True,
        ),
        Setting("target", setting.text(name="path", expected="a directory's path"), "The directory in the guest.",
                default_text="the key where that is a path, else ``/mnt/KEY``"),
        Setting("readonly", setting.boolean(), "The guest cannot write to it.", default=False),
        Setting("type", setting.choice(*_TYPES, parse=_TYPES.__getitem__),
                "How it comes to the guest. ``virtio-9p`` is ``9p``, ``virtio-fs`` is ``virtiofs``.", default="9p"),
    )
)  # fmt: skip


def mount_points() -> Kind:
    """A mapping from names, or directories of the guest, to directories of the host."""
    structure = {
        "type": "object",
        "additionalProperties": {
            "type": ["string", "object"],
            "description": "a directory's path, or a mapping with one",
            **{key: value for key, value in ENTRY.schema.items() if key not in {"type", "description"}},
        },
    }
    return Kind("mapping", "a mapping to directories", structure, _read)


def parse_mount(text: str, directory: str) -> Mount:
    """``HOSTDIR:GUESTDIR[:ro][:type=TYPE]`` or ``NAME=HOSTDIR[,ro][,type=TYPE]``.

    A relative HOSTDIR is in ``directory``.

    :raise UsageError: it is neither.
    """
    name, equals, rest = text.partition("=")
    is_named = bool(equals) and _TAG.fullmatch(name) is not None
    source, read_only, kind = _cut_flags(rest if is_named else text, "," if is_named else ":", text)
    target, tag = (f"/mnt/{name}", name) if is_named else ("", "")
    if not is_named:
        # A directory of the host may have any name; one of the guest has no colon.
        source, _, target = source.rpartition(":")
    if not source or not target:
        raise UsageError(f"--mount {text}: a directory is missing", hint=_OPTION_HINT)
    try:
        source = expand_home(source, os.path.expanduser("~"))
        return _make(os.path.join(directory, source), target, read_only, tag, kind)
    except ValueError as err:
        raise UsageError(f"--mount {text}: {err}") from None


def _cut_flags(text: str, sign: str, whole: str) -> tuple[str, bool, str]:
    """What is before the flags at the end, whether they say read-only, and the type.

    :raise UsageError: what could only be a flag is none.
    """
    read_only: bool | None = None
    kind: str | None = None
    while True:
        rest, found, flag = text.rpartition(sign)
        word, _, value = flag.partition("=")
        if not found or not rest or ("/" in flag and not flag.startswith("type=")):
            break
        if word == "type" and value in _TYPES:
            kind = kind or _TYPES[value]
        elif flag in {"ro", "rw"}:
            read_only = flag == "ro" if read_only is None else read_only
        elif word == "type" or sign == ":":
            raise UsageError(f"--mount {whole}: {flag!r} is none of ro, rw, type=9p, type=virtiofs", hint=_OPTION_HINT)
        else:
            break
        text = rest
    return text, bool(read_only), kind or "9p"


def join_mounts(first: tuple[Mount, ...], second: tuple[Mount, ...]) -> tuple[Mount, ...]:
    """Both; of two for one directory of the guest, the later."""
    return tuple({each.target: each for each in (*first, *second)}.values())


def _read(value: Mapping[str, Any], scope: Scope) -> tuple[Mount, ...]:
    found: list[Mount] = []
    for key, item in value.items():
        at = scope.at(key)
        count = len(scope.document.problems)
        given = {"path": item} if isinstance(item, str) else item
        values = {**ENTRY.defaults(at), **ENTRY.collect(given, at)}
        if at.path in at.bad or values.get("path") is None or len(scope.document.problems) > count:
            continue
        try:
            mount = _read_one(key, values)
        except ValueError as err:
            at.add(str(err))
            continue
        if any(mount.target == each.target for each in found):
            at.add(f"{mount.target} has a directory already")
        found.append(mount)
    if len(found) > MAX_MOUNTS:
        scope.add(f"a VM can have at most {MAX_MOUNTS} directories")
    return tuple(found)


def _read_one(key: str, values: Mapping[str, Any]) -> Mount:
    if key.startswith("/"):
        return _make(values["path"], values["target"] or key, values["readonly"], "", values["type"])
    if _TAG.fullmatch(key) is None:
        raise ValueError("is neither a name of at most 31 letters, digits, '_', '.' and '-' nor an absolute path")
    return _make(values["path"], values["target"] or f"/mnt/{key}", values["readonly"], key, values["type"])


def _make(source: str, target: str, read_only: bool, tag: str, kind: str) -> Mount:
    if not source.startswith("/") or "\0" in source:
        raise ValueError(f"{source!r} is not an absolute path")
    if _TARGET.fullmatch(target) is None or {".", ".."} & set(target.split("/")):
        raise ValueError(f"{target!r} is not an absolute path of plain characters for the guest")
    return Mount(os.path.normpath(source), target, read_only, tag, kind)
