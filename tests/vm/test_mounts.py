# SPDX-License-Identifier: Apache-2.0
"""Directories of the host in the image that pvc builds, from the template to the files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from guests import build_guest
from harness import Console, guest_template, supervised

from pvc.images import build
from pvc.images.recipe import find_recipe, load_recipe
from pvc.images.resolve import resolve_template
from pvc.images.transfer import Incoming
from pvc.model.site import Template
from pvc.model.vm import Mount, Phase
from tests.guests import DEFAULT_CACHE
from tests.unit.images.disks import quiet, repositories

pytestmark = pytest.mark.vm


def test_the_guest_has_them_when_it_is_up(tmp_path: Path) -> None:
    where = repositories(tmp_path / "repository")
    recipe = load_recipe(find_recipe("debian"))
    with build.built(recipe, print, cache=DEFAULT_CACHE.parent / "images") as made:
        where.import_file(Incoming(made.disk, "debian", None, made.kernel, made.initrd, made.append), quiet)
    shared, closed = tmp_path / "shared, dir", tmp_path / "closed"
    for each in (shared, closed):
        each.mkdir(mode=0o700)
    (shared / "from-host").write_text("hello\n")
    (shared / "way-out").symlink_to("/etc/hostname")
    mounts = (Mount(os.fspath(shared), "/data/shared"), Mount(os.fspath(closed), "/mnt/closed", True, "closed"))
    template = resolve_template(Template("t", "debian", "nat", mount_points=mounts), where)
    with supervised(tmp_path, template, memory_mib=700) as cluster:
        cluster.wait_phase(0, Phase.BOOTING)
        with cluster.connect() as connection:
            console = Console(connection, 0)
            console.wait(b":~# ", 250)
            console.send(b"cat /data/shared/from-host; echo back > /data/shared/from-guest; cat /data/shared/way-out\n")
            console.send(b"touch /mnt/closed/x; grep -c 9p /proc/mounts; echo do''ne\n")
            said = console.wait(b"done").decode(errors="replace")
        assert "hello" in said
        assert "Read-only file system" in said
        # A link means the guest's own file.
        assert "vm0" in said.split("way-out", 1)[1]
    assert (shared / "from-guest").read_text() == "back\n"
    assert (shared / "from-guest").stat().st_uid == os.getuid()
    assert os.listdir(closed) == []


def test_a_directory_that_the_node_lacks(tmp_path: Path) -> None:
    template = guest_template(build_guest(), mounts=(Mount(os.fspath(tmp_path / "none"), "/data", tag="pvc0"),))
    with supervised(tmp_path, template) as cluster:
        failed = cluster.wait_phase(0, Phase.FAILED)
        assert f"{tmp_path}/none, for /data, is no directory that you can read" in failed.detail
