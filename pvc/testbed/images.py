# SPDX-License-Identifier: Apache-2.0
"""Images for a testbed's site repository, built on this machine: its nodes have no way to a mirror.

What the builder made is kept outside of testbeds, once per machine, and is used where no mirror answers, too.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from pvc.errors import HostError, UsageError
from pvc.images import build
from pvc.images.guestbuild import BUILD_KEY, BuildPlace, GuestBuild, build_from
from pvc.images.guestrecipe import load_guest_recipe
from pvc.images.recipe import find_recipe, join_recipes, load_lineage
from pvc.images.repository import FoundImage, Repositories
from pvc.images.transfer import Incoming
from pvc.model.site import Repository
from pvc.model.vm import Accel
from pvc.testbed.place import Place

DEFAULT = "debian"


def find_cache() -> Path:
    """Where built images are kept: $XDG_CACHE_HOME/pvc when set, else /var/cache/pvc."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path("/var/cache")) / "pvc"


def find_recipes(names: Sequence[str]) -> tuple[Path, ...]:
    """The files of recipes, read once: what is wrong with one is told before anything is made.

    :raise UsageError: there is no such recipe.
    :raise ConfigError: something is wrong with one.
    """
    found = tuple(dict.fromkeys(find_recipe(name) for name in names))
    for path in found:
        if load_guest_recipe(path) is None:
            load_lineage(path)
    return found


def ensure_image(place: Place, path: Path, tell: build.Step) -> tuple[FoundImage, bool]:
    """Give the testbed's repository the image of a recipe, by the recipe's name; False when it was there already.

    :raise HostError: there is no such testbed; packages, disk space or the network are missing.
    :raise GuestError: the guest of a recipe that is from another image does not do what that says.
    """
    if place.read_record() is None:
        raise HostError(f"testbed {place.name!r} is not up", hint=f"pvc testbed up --name {place.name}")
    site = Repositories([Repository("site", os.fspath(place.state_dir / "images"))])
    recipe = load_guest_recipe(path)
    if recipe is None:
        return _ensure_built(site, path, tell)
    how = BuildPlace(Accel.AUTO, network=True, owner="root", cache=None)
    image, known = build_from(GuestBuild(recipe, path.stem, None), site, how, tell, _no_progress)
    return image, not known


def _ensure_built(site: Repositories, path: Path, tell: build.Step) -> tuple[FoundImage, bool]:
    lineage = load_lineage(path)
    wanted = join_recipes(lineage)
    with build.built(lineage, tell, cache=find_cache() / "images") as made:
        # The result's directory is named after everything that went into it.
        key = made.disk.parent.name
        found = _find(site, path.stem)
        if found is not None and found.image.hints.get(BUILD_KEY) == key:
            return found, False
        tell("importing the image")
        incoming = Incoming(
            made.disk,
            path.stem,
            kernel=made.kernel,
            initrd=made.initrd,
            append=made.append,
            description=wanted.description,
            owner="root",
            hints=wanted.hints | {BUILD_KEY: key},
        )
        return site.import_file(incoming, _no_progress), True


def _find(site: Repositories, name: str) -> FoundImage | None:
    try:
        return site.locate(name)
    except UsageError:
        return None


def _no_progress(_what: str, _done: int, _all: int) -> None:
    """Steps are told, and that is enough."""
