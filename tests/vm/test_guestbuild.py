# SPDX-License-Identifier: Apache-2.0
"""Images made by a guest of another one: what the result holds, and what failed or killed builds leave."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from pvc.errors import GuestError
from pvc.images import build
from pvc.images.guestbuild import BuildPlace, GuestBuild, build_from
from pvc.images.guestrecipe import GuestRecipe
from pvc.images.recipe import RecipeFile, find_recipe, load_recipe
from pvc.images.repository import FoundImage, Repositories
from pvc.images.transfer import Incoming
from pvc.images.verify import verify_store
from pvc.model.vm import Accel
from tests.guests import DEFAULT_CACHE
from tests.unit.images.disks import quiet, raw_disk, repositories
from tests.vm.guests import build_guest
from tests.waits import wait_until

pytestmark = pytest.mark.vm

PLACE = BuildPlace(Accel.AUTO, True, "me", None)
# What a clone must not have of another.
SECRETS = ("/etc/ssh/ssh_host_ed25519_key", "/etc/ssh/seed_host_ed25519_key", "/var/lib/systemd/random-seed")


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Repositories]:
    """A repository with the Debian guest, and the small one, which has no cloud-init."""
    base = tmp_path_factory.mktemp("build")
    found = repositories(base)
    recipe = load_recipe(find_recipe("debian"))
    with build.built(recipe, print, cache=DEFAULT_CACHE.parent / "images") as made:
        found.import_file(Incoming(made.disk, "debian", None, made.kernel, made.initrd, made.append), quiet)
    small = build_guest()
    (base / "disk").write_bytes(raw_disk())
    found.import_file(Incoming(base / "disk", "small", None, small.kernel, small.initrd, small.append), quiet)
    yield found
    subprocess.run(["rm", "-rf", base], check=True)


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """TMPDIR, where nothing may stay."""
    path = tmp_path / "tmp"
    path.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(path))
    return path


def make(
    where: Repositories, recipe: GuestRecipe, name: str = "made", *, flat: bool = False, steps: list[str] | None = None
) -> tuple[FoundImage, bool]:
    told = [] if steps is None else steps
    return build_from(GuestBuild(recipe, name, None, flat), where, PLACE, told.append, quiet)


def assert_nothing_left(where: Repositories, temporary: Path) -> None:
    assert not list((where.store().path / ".tmp").iterdir())
    assert not list(temporary.iterdir())


def reader(where: Repositories, found: FoundImage, base: Path) -> Callable[[str], str]:
    """A function that looks into the file system of an image."""
    disk = base / "disk.raw"
    chain: dict[str, object] | None = None
    for layer in found.image.layers:
        file = {"driver": "file", "filename": str(where.store().blob_path(layer.blob))}
        chain = {"driver": "qcow2", "file": file, "backing": chain}
    source = f"json:{json.dumps(chain)}"
    subprocess.run(["qemu-img", "convert", "-O", "raw", source, disk], check=True)
    return lambda words: subprocess.run(
        ["debugfs", "-R", words, disk], check=True, capture_output=True, text=True
    ).stdout  # fmt: skip


def test_a_guest_makes_a_layer_that_is_nobodys_own(where: Repositories, tmp_path: Path, temporary: Path) -> None:
    recipe = GuestRecipe(
        "debian",
        description="more",
        files=(RecipeFile("/opt/made/script", "#!/bin/sh\necho of the recipe\n", "0755"),),
        commands=(
            "/opt/made/script > /opt/made/result",
            "test $(id -u) = 0; ! test -s /nowhere",
            "id -un > /opt/made/who",
        ),
        append="from.recipe=1",
        size="9G",
    )
    steps: list[str] = []
    found, cached = make(where, recipe, steps=steps)
    base = where.find("debian")
    assert not cached
    assert [each for each in steps if each.startswith("running")] == [f"running command {i} of 3" for i in (1, 2, 3)]
    assert [each.blob for each in found.image.below] == [base.disk]
    assert (found.image.kernel, found.image.initrd) == (base.kernel, base.initrd)
    assert found.image.append == f"{base.append} from.recipe=1"
    assert (found.image.size, found.image.description) == (9 << 30, "more")
    assert found.image.hints["from"] == "user:debian@1"
    # Less than the base by far: only what changed.
    assert found.image.disk.size * 4 < base.disk.size
    look = reader(where, found, tmp_path)
    assert look("cat /opt/made/result") == "of the recipe\n"
    assert look("cat /opt/made/who") == "root\n"
    assert "0755" in look("stat /opt/made/script")
    assert not look("cat /etc/machine-id")
    for path in SECRETS:
        assert "Inode:" not in look(f"stat {path}"), path
    assert {line.split("/")[5] for line in look("ls -p /var/lib/cloud").splitlines() if line} == {".", ".."}
    assert "pvc-clean" not in look("ls -p /usr/lib/systemd/system-shutdown")
    assert_nothing_left(where, temporary)
    # Of the same, nothing is run again, whatever the name.
    again, cached = make(where, recipe)
    assert (again.uri, cached) == (found.uri, True)
    other, cached = make(where, recipe, "other")
    assert (other.uri, cached) == ("user:other@1", True)
    assert other.image.disk == found.image.disk
    assert {each.problem for each in verify_store(where.store(), quiet)} == {None}


def test_a_command_that_fails_ends_the_build(where: Repositories, temporary: Path) -> None:
    recipe = GuestRecipe("debian", commands=("echo this works", "echo the last words; ls /nowhere", "echo never"))
    before = where.list_all()
    with pytest.raises(GuestError) as caught:
        make(where, recipe, "broken", flat=True)
    text = str(caught.value)
    assert "command 2: exit code 2" in text
    assert "the last words\n" in text
    assert "cannot access '/nowhere'" in text
    assert "never" not in text
    assert where.list_all() == before
    assert_nothing_left(where, temporary)


def test_a_guest_without_cloud_init_is_told_by_its_console(where: Repositories, temporary: Path) -> None:
    with pytest.raises(GuestError, match="user:small@1: it took longer than its time limit, 40s") as caught:
        make(where, GuestRecipe("small", timeout="40s", memory="256M"))
    assert caught.value.hint is not None
    assert "it needs cloud-init" in caught.value.hint
    assert "GUEST-" in str(caught.value)
    assert_nothing_left(where, temporary)


def test_a_killed_build_leaves_nothing(where: Repositories, temporary: Path) -> None:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        with suppress(BaseException):
            wanted = GuestBuild(GuestRecipe("small", memory="256M"), "killed", None)
            build_from(wanted, where, PLACE, lambda text: os.write(writing, text.encode()) and None, quiet)
        os._exit(0)
    os.close(writing)
    assert os.read(reading, 1000).startswith(b"booting")
    children = wait_until(lambda: Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    qemu = os.pidfd_open(int(children[0]))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(reading)
    assert select.select([qemu], [], [], 60)[0], "QEMU outlived its builder"
    os.close(qemu)
    before = where.list_all()
    for path in temporary.iterdir():
        os.utime(path, (0, 0))
    with pytest.raises(GuestError):
        make(where, GuestRecipe("small", timeout="1s", memory="256M"))
    assert where.list_all() == before
    where.store().collect()
    assert_nothing_left(where, temporary)


def test_a_flat_image_rests_on_nothing_and_a_guest_can_be_without_network(
    where: Repositories, temporary: Path, tmp_path: Path
) -> None:
    recipe = GuestRecipe("debian", commands=("ls /sys/class/net > /root/nets",))
    found, _ = build_from(GuestBuild(recipe, "whole", None, True), where, replace(PLACE, network=False), print, quiet)
    base = where.find("debian")
    assert found.image.below == ()
    assert found.image.disk.size > base.disk.size // 2
    look = reader(where, found, tmp_path)
    assert look("cat /root/nets") == "lo\n"
    assert "Type: regular" in look("stat /usr/bin/cloud-init")
    assert_nothing_left(where, temporary)
