# SPDX-License-Identifier: Apache-2.0
"""Images for tests on a testbed: a guest of ten megabytes that answers like an ssh server, imported once."""

from __future__ import annotations

import subprocess
from pathlib import Path

from pvc.images import build
from pvc.images.recipe import find_recipe, load_recipe
from pvc.images.repository import Repositories
from pvc.images.transfer import Incoming
from pvc.model.site import Repository
from tests.guests import DEFAULT_CACHE, alpine_with_agent
from tests.slurm.testbed import Testbed
from tests.vm.guests import Guest, agent_guest, build_agent, build_guest

SMALL = "small"


def import_small(testbed: Testbed, scratch: Path) -> str:
    """Put the small guest into the testbed's repository; its name, which is a template's, too."""
    return _import(testbed, scratch, build_guest(), SMALL)


def import_agent(testbed: Testbed, scratch: Path) -> str:
    """The same for the small guest with the agent in it."""
    return _import(testbed, scratch, agent_guest(), "agent")


def import_bare(testbed: Testbed, scratch: Path) -> str:
    """An empty disk: its VM has all that others have, and its firmware finds nothing to boot."""
    return _import_file(testbed, Incoming(_empty_disk(scratch, "bare"), "bare"))


def import_debian(testbed: Testbed) -> str:
    """The Debian that pvc itself builds, from its cache."""
    recipe = load_recipe(find_recipe("debian"))
    with build.built(recipe, print, cache=DEFAULT_CACHE.parent / "images") as made:
        return _import_file(testbed, Incoming(made.disk, "debian", None, made.kernel, made.initrd, made.append))


def import_alpine(testbed: Testbed, scratch: Path) -> str:
    """The foreign Alpine with nothing of pvc's in it but the agent."""
    guest = alpine_with_agent(build_agent(), scratch)
    return _import_file(testbed, Incoming(guest.disk, "alpine-agent", None, guest.kernel, guest.initrd, guest.append))


def _import(testbed: Testbed, scratch: Path, guest: Guest, name: str) -> str:
    disk = _empty_disk(scratch, name)
    return _import_file(testbed, Incoming(disk, name, None, guest.kernel, guest.initrd, guest.append))


def _empty_disk(scratch: Path, name: str) -> Path:
    disk = scratch / f"{name}.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, "64M"], check=True)
    return disk


def _import_file(testbed: Testbed, incoming: Incoming) -> str:
    site = Repositories([Repository("site", str(testbed.place.state_dir / "images"))])
    site.import_file(incoming, lambda *_: None)
    return incoming.name
