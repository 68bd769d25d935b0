# SPDX-License-Identifier: Apache-2.0
"""Repositories under kill -9 and other writers at every call of the system."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pvc.errors import PvcError
from pvc.images.oci import Reference
from pvc.images.repository import Repositories
from pvc.images.save import Changed, save_changed
from pvc.images.transfer import Incoming
from tests.unit.images.disks import bz_image, quiet, raw_disk, repositories
from tests.unit.images.faults import boundaries, die


@pytest.fixture
def base() -> Iterator[Path]:
    """A directory in memory where there is one: these tests write thousands of files, each brought to the disk."""
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shm if os.access(shm, os.W_OK) else None) as directory:
        yield Path(directory)


def import_small(where: Repositories, base: Path, name: str, mark: bytes) -> str:
    source = base / f"{name}.src"
    source.write_bytes(raw_disk(4096, mark))
    return where.import_file(Incoming(source, name), quiet).uri


def save_small(where: Repositories, mark: bytes) -> None:
    """A new revision of "a" that rests on a@2."""

    def fill(path: Path) -> None:
        with path.open("ab") as stream:
            stream.write(mark)

    changed = Changed(4096, where.find("a@2"), where.store())
    save_changed(changed, where.store(), "a", "me", fill, quiet)


def check(where: Repositories) -> set[str]:
    """What is there, all of it whole."""
    found = where.list_all()
    for each in found:
        for blob in each.image.blobs:
            content = where.store().blob_path(blob).read_bytes()
            assert hashlib.sha256(content).hexdigest() == blob.sha256, each.uri
    return {str(each.image) for each in found}


def check_clean(where: Repositories) -> None:
    """After a collection nothing is left that nothing names."""
    store = where.store()
    store.collect()
    named = {str(store.blob_path(blob)) for each in where.list_all() for blob in each.image.blobs}
    present = {str(path) for path in store.path.rglob("*") if path.is_file()}
    metas = {str(store.path / "meta" / f"{each.image}.json") for each in where.list_all()}
    assert present == named | metas | {str(store.path / ".config")}


def layout(base: Path) -> Reference:
    """Where ``prepared`` puts an image of two files in the OCI image layout."""
    return Reference("", base / "layout")


def prepared(where: Repositories, base: Path) -> Callable[[], None]:
    """Revisions of "a" with the contents 1 and 2, and a file that nothing names, whose content is 3.

    The layout has an image with that file and one that the repository has not.
    """
    (base / "kernel").write_bytes(bz_image())
    (base / "disk").write_bytes(raw_disk(4096, b"3"))
    elsewhere = repositories(base / "elsewhere")
    elsewhere.import_file(Incoming(base / "disk", "b", kernel=base / "kernel"), quiet)
    elsewhere.export_oci(elsewhere.locate("b"), layout(base), quiet)
    import_small(where, base, "a", b"1")
    import_small(where, base, "a", b"2")
    import_small(where, base, "x", b"3")
    (base / "user" / "meta" / "x@1.json").unlink()
    (base / "user").rename(base / "first")

    def prepare() -> None:
        shutil.rmtree(base / "user", ignore_errors=True)
        shutil.copytree(base / "first", base / "user")

    return prepare


ACTIONS = {
    "layout": lambda where, base: where.import_oci(layout(base), Incoming(base, ""), quiet),
    "new": lambda where, base: import_small(where, base, "b", b"4"),
    "known": lambda where, base: import_small(where, base, "b", b"1"),
    "unnamed": lambda where, base: import_small(where, base, "b", b"3"),
    "save": lambda where, base: save_small(where, base.name.encode()),
    "delete": lambda where, _: where.delete("a@1"),
    "collect": lambda where, _: where.store().collect(),
}
AFTER = {
    "layout": {"b@1"},
    "new": {"b@1"},
    "known": {"b@1"},
    "unnamed": {"b@1"},
    "save": {"a@3"},
    "delete": set(),
    "collect": set(),
}


@pytest.mark.parametrize("name", ACTIONS)
def test_killed_at_any_call_nothing_is_lost_and_nothing_stays(base: Path, name: str) -> None:
    where = repositories(base)
    calls = 0
    for _ in boundaries(lambda: ACTIONS[name](where, base), die, prepared(where, base)):
        where.store().collect()
        there = check(where)
        assert there >= {"a@2"} | ({"a@1"} if name != "delete" else set())
        assert there <= {"a@1", "a@2"} | AFTER[name]
        check_clean(where)
        calls += 1
        # The next writer is not held up.
        import_small(where, base, "c", b"4")
        assert "c@1" in check(where)
    assert calls > 10


PAIRS = [
    ("unnamed", "collect"), ("known", "delete"), ("new", "new"), ("new", "known"), ("collect", "unnamed"),
    ("delete", "known"), ("collect", "collect"), ("delete", "collect"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "other"), PAIRS)
def test_another_writer_at_any_call_breaks_nothing(base: Path, name: str, other: str) -> None:
    where = repositories(base)
    (base / "other").mkdir()
    prepare = prepared(where, base)
    for _ in boundaries(lambda: ACTIONS[name](where, base), lambda: ACTIONS[other](where, base / "other"), prepare):
        there = check(where)
        writers = len(AFTER[name]) + len(AFTER[other])
        wanted = {"a@2"} | {f"b@{i + 1}" for i in range(writers)}
        assert there == wanted | (set() if "delete" in (name, other) else {"a@1"})
        check_clean(where)
        assert check(where) == there


@pytest.mark.parametrize(
    ("name", "other"),
    [("save", "collect"), ("collect", "save"), ("save", "save"), ("save", "delete"), ("delete", "save")],
)
def test_saves_and_other_writers_at_any_call(base: Path, name: str, other: str) -> None:
    where = repositories(base)
    actions = {**ACTIONS, "save": lambda where, _: save_small(where, b"changed")}
    for _ in boundaries(lambda: actions[name](where, base), lambda: actions[other](where, base), prepared(where, base)):
        saves = (name, other).count("save")
        wanted = {"a@2"} | {f"a@{3 + i}" for i in range(saves)} | (set() if "delete" in (name, other) else {"a@1"})
        assert check(where) == wanted
        check_clean(where)
        assert check(where) == wanted


@pytest.mark.parametrize("first", ["save", "delete"])
def test_an_image_deleted_while_a_save_rests_on_it(base: Path, first: str) -> None:
    """The save has all that it rests on, or says that it is gone; never half of it."""
    where = repositories(base)

    def save() -> None:
        with contextlib.suppress(PvcError):
            save_small(where, b"changed")

    def delete() -> None:
        where.delete("a@2")

    action, fault = (save, delete) if first == "save" else (delete, save)
    outcomes = set()
    for _ in boundaries(action, fault, prepared(where, base)):
        there = check(where)
        # Once a@2 is gone, the next revision may have its number.
        assert there in ({"a@1"}, {"a@1", "a@3"}, {"a@1", "a@2"})
        assert all(each.image.below for each in where.list_all() if each.image.revision > 1)
        check_clean(where)
        assert check(where) == there
        outcomes.add(len(there))
    assert outcomes == {1, 2}
