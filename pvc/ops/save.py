# SPDX-License-Identifier: Apache-2.0
"""Saving a disk of a running VM as an image."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pvc import codec
from pvc.errors import GuestError, HostError, PvcError, UsageError
from pvc.images.image import ImageUri, parse_uri
from pvc.images.repository import FoundImage, Repositories
from pvc.images.save import Changed, must_flatten, save_changed
from pvc.images.store import Store
from pvc.images.streams import Progress
from pvc.model.cluster import NodeEndpoint
from pvc.model.vm import SavedDisk
from pvc.ops.control import Control, raise_refusal

_ANSWER_S = 30.0
_SILENCE_S = 120.0
_MAX_LINE = 1 << 16


@dataclass(frozen=True)
class Wish:
    """What to save: ``vm`` is its name, ``image`` the new one's, None: a new revision of what it started from.

    ``speed``: bytes a second, 0: as many as the disks give.
    """

    vm: str
    rank: int
    disk: int = 0
    image: str | None = None
    full: bool = False
    speed: int = 0


@dataclass(frozen=True)
class Saved:
    """The new image; ``flattened``: it stands alone because its chain was too long."""

    found: FoundImage
    frozen: bool
    flattened: bool


def save(
    control: Control, endpoint: NodeEndpoint, wish: Wish, repositories: Repositories, owner: str, progress: Progress
) -> Saved:
    """Save one disk.

    :raise UsageError: there is no such disk or repository, or nothing says how the image shall be called.
    :raise PvcError: it was not saved; no repository has changed then.
    """
    disk = _find_disk(control, endpoint, wish)
    base = _find_base(disk, wish, repositories)
    store, name = choose_target(wish, base, repositories)
    flatten = not wish.full and must_flatten(base.image if base else None)
    full = wish.full or flatten
    frozen = False

    def fill(path: Path) -> None:
        nonlocal frozen
        request = {"op": "save", "vm": wish.rank, "disk": wish.disk, "path": os.fspath(path), "full": full}
        request["speed"] = wish.speed
        counter = _Counter(f"disk {wish.disk} of {wish.vm}", progress)
        frozen = _ask(control, endpoint, request, counter.show)
        counter.end()

    changed = Changed(disk.size, base.image if base else None, repositories.store(base.repository) if base else None)
    image = save_changed(changed, store, name, owner, fill, progress, full=full)
    return Saved(FoundImage(store.name, image), frozen, flatten)


class _Counter:
    """QEMU's figures, the sum of which may change, as the progress of a copy: from nothing to all."""

    def __init__(self, what: str, progress: Progress) -> None:
        self._what = what
        self._progress = progress
        self._total = 0

    def show(self, done: int, total: int) -> None:
        """``done`` of ``total`` bytes."""
        if total > 0 and not self._total:
            self._progress(self._what, 0, total)
        self._total = total
        if 0 < done < total:
            self._progress(self._what, done, total)

    def end(self) -> None:
        """All is done."""
        if self._total:
            self._progress(self._what, self._total, self._total)


def _find_disk(control: Control, endpoint: NodeEndpoint, wish: Wish) -> SavedDisk:
    answer = control.ask(endpoint, {"op": "disks", "vm": wish.rank}, _ANSWER_S)
    try:
        disks = codec.from_data(tuple[SavedDisk, ...], answer["disks"])
    except (ValueError, KeyError) as err:
        raise HostError(f"the supervisor on {endpoint.node} answers nonsense") from err
    for disk in disks:
        if disk.number == wish.disk:
            return disk
    known = ", ".join(str(each.number) for each in disks) or "none"
    raise UsageError(f"{wish.vm} has no disk {wish.disk} (it has: {known})")


def _find_base(disk: SavedDisk, wish: Wish, repositories: Repositories) -> FoundImage | None:
    """The very image that the disk started from."""
    if not disk.image:
        return None
    gone = GuestError(
        f"{wish.vm} started from image {disk.image}, which is not there any more",
        hint="what it has written means nothing without that image; copy what you need out of the guest (pvc scp)",
    )
    try:
        found = repositories.locate(disk.image)
    except UsageError:
        raise gone from None
    if found.image.disk.sha256 != os.path.basename(disk.path):
        raise gone
    repositories.verify(found)
    return found


def choose_target(wish: Wish, base: FoundImage | None, repositories: Repositories) -> tuple[Store, str]:
    """Where the new image goes: into the repository of its base if that may be written, so that they share data.

    :raise UsageError: there is no such repository, none that may be written, or no name.
    """
    wanted = _parse(wish.image)
    if wanted is None and base is None:
        raise UsageError(
            f"disk {wish.disk} of {wish.vm} started empty, so no image has it as a revision",
            hint=f"name a new image: pvc save --disk {wish.disk} {wish.vm} NAME",
        )
    own = repositories.store(base.repository) if base else None
    if wanted is not None and wanted.repository:
        store = repositories.store(wanted.repository)
    elif own is not None and is_writable(own):
        store = own
    elif wanted is None and base is not None:
        raise UsageError(
            f"{base.uri}, which {wish.vm} started from, is in a repository that you may not write",
            hint=f"save a new image of your own: pvc save {wish.vm} {base.image.name}-of-mine",
        )
    else:
        store = next((each for each in repositories.stores if is_writable(each)), repositories.store())
    store.ensure(private=store.path.is_relative_to(Path.home()))
    if not is_writable(store):
        known = ", ".join(each.name for each in repositories.stores if is_writable(each)) or "none"
        raise UsageError(f"you may not write the image repository {store.name!r} (you may write: {known})")
    return store, wanted.name if wanted else base.image.name if base else ""


def is_writable(store: Store) -> bool:
    """Whether a new image may go there; a repository that is not made yet may be made."""
    try:
        if store.exists():
            return all(os.access(store.path / part, os.W_OK | os.X_OK) for part in ("data", "meta", ".tmp"))
    except PvcError:
        return False
    near = next(each for each in (store.path, *store.path.parents) if each.exists())
    return os.access(near, os.W_OK | os.X_OK)


def _parse(text: str | None) -> ImageUri | None:
    if text is None:
        return None
    try:
        uri = parse_uri(text)
    except ValueError as err:
        raise UsageError(str(err)) from None
    if uri.revision:
        raise UsageError(f"{text!r}: revisions are numbered by the repository", hint=f"say {uri.name!r}")
    return uri


def _ask(
    control: Control, endpoint: NodeEndpoint, request: dict[str, Any], progress: Callable[[int, int], None]
) -> bool:
    """Let the VM's node do it; whether file systems were frozen. Whoever closes the connection ends it."""
    with control.talking(), control.connect(endpoint, _SILENCE_S) as connection:
        try:
            connection.sendall(json.dumps(request).encode() + b"\n")
            with connection.makefile("rb") as stream:
                while line := stream.readline(_MAX_LINE):
                    answer = codec.read_json(line)
                    if "ok" in answer:
                        raise_refusal(answer, endpoint.node)
                        return bool(answer.get("frozen"))
                    progress(int(answer["done"]), int(answer["total"]))
        except (OSError, ValueError, KeyError, TypeError) as err:
            raise HostError(f"the supervisor on {endpoint.node} does not answer") from err
        raise HostError(f"the supervisor on {endpoint.node} stopped answering")
