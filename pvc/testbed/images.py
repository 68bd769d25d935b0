"""The image "debian" for a testbed's site repository, built once per machine.

Two caches outside of testbeds: what the builder made, and a repository that has it. A testbed's own
repository gets hard links: an image's files are never written to again.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from pvc import files
from pvc.images import build, recipe
from pvc.images.repository import Repositories
from pvc.images.transfer import Incoming
from pvc.model.site import Repository
from pvc.testbed.place import Place

IMAGE = "debian"


def find_cache() -> Path:
    """Where built images are kept: $XDG_CACHE_HOME/pvc when set, else /var/cache/pvc."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path("/var/cache")) / "pvc"


def ensure_image(place: Place, tell: build.Step) -> bool:
    """Give the testbed's repository the image; False when it has it already.

    :raise HostError: it cannot be built: packages, disk space or the network are missing.
    """
    target = place.state_dir / "images"
    cache = find_cache()
    wanted = recipe.load_recipe(recipe.find_recipe(IMAGE))
    with build.built(wanted, tell, cache=cache / "images") as made:
        # The result's directory is named after everything that went into it.
        stamp = target / f".{made.disk.parent.name}"
        if stamp.exists():
            return False
        ready = cache / "testbed" / made.disk.parent.name
        with files.locked(cache / ".testbed.lock", timeout_s=600):
            if not ready.is_dir():
                _import(made, wanted, ready, tell)
            _link_tree(ready, target)
        stamp.touch()
    return True


def _import(made: build.BuiltImage, wanted: recipe.Recipe, ready: Path, tell: build.Step) -> None:
    """Make a repository beside its final name, then name it: half a one is never used."""
    files.remove_tree(ready.parent)
    partial = ready.parent / f".{ready.name}"
    partial.parent.mkdir(parents=True)
    tell("importing the image")
    incoming = Incoming(
        made.disk,
        IMAGE,
        kernel=made.kernel,
        initrd=made.initrd,
        append=made.append,
        description=wanted.description,
        owner="root",
        hints=wanted.hints,
    )
    Repositories([Repository("site", os.fspath(partial))]).import_file(incoming, lambda _what, _done, _all: None)
    partial.rename(ready)


def _link_tree(source: Path, target: Path) -> None:
    """Hard links where both are on one file system, else copies; what is there already stays."""
    for base, directories, names in os.walk(source):
        here = target / Path(base).relative_to(source)
        for name in directories:
            (here / name).mkdir(exist_ok=True)
            shutil.copystat(Path(base) / name, here / name)
        for name in names:
            if not (here / name).exists():
                try:
                    os.link(Path(base) / name, here / name)
                except OSError:
                    shutil.copy2(Path(base) / name, here / name)
