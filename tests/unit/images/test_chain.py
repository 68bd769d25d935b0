# SPDX-License-Identifier: Apache-2.0
"""Images that rest on others: what they need stays, and no header leads anywhere else."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pvc.errors import GuestError, HostError, UsageError
from pvc.host.overlay import write_overlay
from pvc.images.chain import MAX_LAYERS, backing_name
from pvc.images.image import Blob, Format, Image, Layer
from pvc.images.repository import FoundImage, Repositories
from pvc.images.resolve import resolve_template
from pvc.images.save import Changed, must_flatten, save_changed
from pvc.images.verify import verify_store
from pvc.model.site import Template
from pvc.plan.disks import plan_overlay
from tests.unit.images.disks import Qcow2, import_raw, quiet, repositories

OTHER = "0" * 64


def grow(mark: bytes) -> Callable[[Path], None]:
    """What QEMU would write: some more of the file."""

    def fill(path: Path) -> None:
        with path.open("ab") as stream:
            stream.write(mark.ljust(512, b"."))

    return fill


def save(where: Repositories, base: str, name: str, mark: bytes, *, to: str = "user", full: bool = False) -> FoundImage:
    found = where.locate(base)
    store = where.store(to)
    store.ensure(private=True)
    changed = Changed(1 << 20, found.image, where.store(found.repository))
    return FoundImage(to, save_changed(changed, store, name, "me", grow(mark), quiet, full=full))


def test_what_a_chain_rests_on_stays_as_long_as_it_does(tmp_path: Path) -> None:
    where = repositories(tmp_path)
    import_raw(where, tmp_path, "base")
    base = where.find("base")
    first = save(where, "base", "base", b"1")
    second = save(where, "base", "top", b"2")
    assert (first.uri, second.uri) == ("user:base@2", "user:top@1")
    assert [each.blob for each in second.image.layers] == [base.disk, first.image.disk, second.image.disk]
    where.delete("base", every=True)
    where.verify(second)
    assert [each.problem for each in verify_store(where.store(), quiet)] == [None]
    disk = resolve_template(template("top"), where).disk
    assert disk is not None
    assert [(each.path, each.format) for each in disk.files] == [
        (str(where.store().blob_path(each.blob)), each.format.value) for each in second.image.layers
    ]
    assert disk.image == "user:top@1"
    # A name of any of the layers is enough; the last one takes them along.
    where.copy(second, "again", "me", quiet)
    assert where.delete("top")[1] == 0
    assert where.delete("again")[1] > 0
    assert not list((where.store().path / "data").rglob("?" * 64))


@pytest.mark.allow_run  # qemu-img looks into the layers
def test_an_archive_takes_all_layers_along_once(tmp_path: Path) -> None:
    where = repositories(tmp_path, "user", "site")
    import_raw(where, tmp_path, "base")
    save(where, "base", "middle", b"1")
    save(where, "middle", "top", b"2")
    target = tmp_path / "all.tar"
    where.export([where.locate("top"), where.locate("middle")], target, quiet)
    with tarfile.open(target) as tar:
        assert len(tar.getnames()) == 1 + 3
    top, middle = where.import_archive(target, None, "me", quiet, repository="site")
    assert (top.uri, middle.uri) == ("site:top@1", "site:middle@1")
    assert top.image.layers == where.find("user:top").layers
    where.delete("site:middle")
    where.verify(top)
    assert [each.problem for each in verify_store(where.store("site"), quiet)] == [None]


def template(image: str) -> Template:
    from pvc.ops.definition import image_template

    return image_template(image, "none")


def test_a_chain_goes_elsewhere_whole(tmp_path: Path) -> None:
    where = repositories(tmp_path, "user", "site", "third", "fourth")
    import_raw(where, tmp_path, "base", repository="site")
    made = save(where, "site:base", "mine", b"1")
    assert {each.blob.sha256 for each in made.image.layers} == {
        path.name for path in (tmp_path / "user" / "data").rglob("?" * 64)
    }
    where.copy(made, "third:mine", "me", quiet)
    assert save(where, "user:mine", "alone", b"2", to="fourth", full=True).image.below == ()
    assert [path.name for path in (tmp_path / "fourth" / "data").rglob("?" * 64)] == [
        where.find("fourth:alone").disk.sha256
    ]
    for name in ("user", "third", "fourth"):
        assert [each.problem for each in verify_store(where.store(name), quiet)] == [None]


def test_a_chain_does_not_grow_for_ever(tmp_path: Path) -> None:
    where = repositories(tmp_path)
    import_raw(where, tmp_path, "a")
    for i in range(MAX_LAYERS - 1):
        assert not must_flatten(where.find("a"))
        save(where, "a", "a", b"%d" % i)
    assert must_flatten(where.find("a"))
    assert len(where.find("a").layers) == MAX_LAYERS
    assert not must_flatten(None)


def test_a_failed_save_leaves_nothing(tmp_path: Path) -> None:
    where = repositories(tmp_path)
    import_raw(where, tmp_path, "base")
    found = where.locate("base")
    before = sorted(tmp_path.rglob("*"))
    changed = Changed(1 << 20, found.image, where.store())

    def fail(_: Path) -> None:
        raise GuestError("QEMU has gone")

    def spoil(path: Path) -> None:
        path.unlink()
        write_overlay(path, plan_overlay("/etc/shadow", "raw", 1 << 20))

    for fill, error, text in (
        (fail, GuestError, "QEMU has gone"),
        (spoil, HostError, "names '/etc/shadow'"),
        (lambda path: path.write_bytes(b""), HostError, "empty|no qcow2"),
    ):
        with pytest.raises(error, match=text):
            save_changed(changed, where.store(), "x", "me", fill, quiet)
        assert sorted(tmp_path.rglob("*")) == before
    where.store().blob_path(found.image.disk).unlink()
    with pytest.raises(GuestError, match="is missing"):
        save_changed(changed, where.store(), "x", "me", grow(b"1"), quiet)


HOSTILE = {
    "another file": lambda _: ("/etc/shadow", "raw"),
    "a protocol": lambda blob: (f"nbd://host/{backing_name(blob)}", "raw"),
    "an object": lambda _: ('json:{"driver":"file","filename":"/etc/shadow"}', "raw"),
    "another layer": lambda _: (f"../00/{OTHER}", "raw"),
    "more than the name": lambda blob: (f"{backing_name(blob)}/../../../x", "raw"),
    "less than the name": lambda blob: (backing_name(blob)[:-1], "raw"),
    "another format": lambda blob: (backing_name(blob), "qcow2"),
}


def plant(where: Repositories, disk: bytes, **changes: object) -> FoundImage:
    """An image over "base", as one who may write the repository could make it."""
    base = where.find("base")
    blob = Blob(hashlib.sha256(disk).hexdigest(), len(disk))
    image = Image("evil", 1, 0.0, "me", Format.QCOW2, 1 << 20, blob, below=base.layers)
    source = where.store().path / "evil"
    source.write_bytes(disk)
    contents = {blob.sha256: source, **{each.sha256: where.store().blob_path(each) for each in base.blobs}}
    with where.store().session() as session:
        for each in image.blobs:
            if not session.claim(each):
                session.add(each, contents[each.sha256])
        return FoundImage("user", session.commit(replace(image, **changes)))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_header_names_the_layer_below_and_nothing_else(tmp_path: Path, kind: str) -> None:
    where = repositories(tmp_path, "user", "site")
    import_raw(where, tmp_path, "base")
    path = tmp_path / "overlay"
    name, format_ = HOSTILE[kind](where.find("base").disk)
    write_overlay(path, plan_overlay(name, format_, 1 << 20))
    found = plant(where, path.read_bytes())
    with pytest.raises(GuestError, match=r"as its backing file|does not say"):
        where.verify(found)
    with pytest.raises(GuestError, match="is damaged"):
        resolve_template(template("evil"), where)
    assert verify_store(where.store(), quiet, [("evil", 1)])[0].problem is not None
    # Nor does it come in with an archive.
    where.export([found], tmp_path / "a.tar", quiet)
    with pytest.raises(UsageError, match=r"as its backing file|does not say"):
        where.import_archive(tmp_path / "a.tar", None, "me", quiet, repository="site")
    assert where.store("site").list_revisions() == {}


def test_layers_that_names_do_not_hold_together(tmp_path: Path) -> None:
    where = repositories(tmp_path)
    import_raw(where, tmp_path, "base")
    path = tmp_path / "overlay"
    write_overlay(path, plan_overlay(backing_name(where.find("base").disk), "raw", 1 << 20))
    overlay = path.read_bytes()
    for disk, changes, text in (
        (Qcow2(size=1 << 20, l1_entries=1).encode(), {}, "names '' as its backing file"),
        (overlay, {"below": ()}, "it needs a backing file"),
        (overlay, {"size": 2 << 20}, "a disk of 1048576 bytes"),
    ):
        with pytest.raises(GuestError, match=text):
            where.verify(plant(where, disk, **changes))


def test_a_description_of_no_chain_is_damaged(tmp_path: Path) -> None:
    where = repositories(tmp_path)
    import_raw(where, tmp_path, "base")
    made = save(where, "base", "top", b"1").image
    low, high = made.layers
    for below, disk in (
        ((high,), made.disk),
        ((Layer(low.blob, Format.RAW, 2 << 20),), made.disk),
        (tuple(Layer(Blob(f"{i:064}", 1), Format.QCOW2, 512) for i in range(100)), made.disk),
        ((low, Layer(Blob(OTHER, 1), Format.RAW, 1 << 20)), made.disk),
    ):
        with pytest.raises(ValueError, match=r"are no disk|cannot rest on"):
            replace(made, below=below, disk=disk)
    meta = where.store().path / "meta" / "top@1.json"
    data = json.loads(meta.read_text())
    data["below"] *= 2
    meta.chmod(0o600)
    meta.write_text(json.dumps(data))
    with pytest.raises(GuestError, match="is damaged"):
        where.find("top")
    # What it needs cannot be known: no file goes.
    os.unlink(where.store().path / "meta" / "base@1.json")
    assert where.store().collect().files == 0
    assert where.store().blob_path(low.blob).exists()
