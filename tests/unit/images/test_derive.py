# SPDX-License-Identifier: Apache-2.0
"""Images made of images, and what verification finds."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pvc.errors import GuestError, UsageError
from pvc.images.repository import FoundImage, Repositories
from pvc.images.transfer import Incoming
from pvc.images.verify import Verdict, verify_store
from tests.unit.images.disks import bz_image, import_raw, quiet, raw_disk, repositories


def blobs(where: Repositories, name: str) -> set[str]:
    return {path.name for path in (where.store(name).path / "data").rglob("?" * 64)}


def with_kernel(where: Repositories, base: Path) -> FoundImage:
    (base / "disk").write_bytes(raw_disk())
    (base / "kernel").write_bytes(bz_image())
    incoming = Incoming(
        base / "disk", "a", kernel=base / "kernel", append="quiet", description="d", hints={"user": "u"}
    )
    return where.import_file(incoming, quiet)


def test_a_tag_shares_all_data(tmp_path: Path) -> None:
    where = repositories(tmp_path)
    found = with_kernel(where, tmp_path)
    before = blobs(where, "user")
    made = where.copy(found, "user:stable", "me", quiet)
    assert made.uri == "user:stable@1"
    assert (made.image.blobs, made.image.append, made.image.owner) == (found.image.blobs, "quiet", "me")
    assert blobs(where, "user") == before
    assert where.copy(found, "user:stable", "me", quiet).uri == "user:stable@2"
    # The data stays while any name has it.
    assert where.delete("a", every=True)[1] == 0
    where.verify(where.locate("stable"))


def test_a_copy_brings_only_what_is_missing(tmp_path: Path) -> None:
    where = repositories(tmp_path, "user", "site")
    found = with_kernel(where, tmp_path)
    import_raw(where, tmp_path, "other", repository="site")
    copied: list[str] = []
    made = where.copy(found, "site:b", "me", lambda what, done, _: copied.append(what) if not done else None)
    assert made.uri == "site:b@1"
    assert copied == ["a@1"]  # the kernel; the disk was there
    assert blobs(where, "site") == blobs(where, "user")
    assert [each.problem for each in verify_store(where.store("site"), quiet)] == [None, None]
    for target, text in (
        ("site:b@3", "numbered by the repository"),
        ("no:b", "no image repository"),
        ("a/b", "is not"),
    ):
        with pytest.raises(UsageError, match=text):
            where.copy(found, target, "me", quiet)


def test_a_damaged_image_is_not_copied(tmp_path: Path) -> None:
    where = repositories(tmp_path, "user", "site")
    import_raw(where, tmp_path, "a", b"1")
    found = where.locate("a")
    path = where.store("user").blob_path(found.image.disk)
    path.chmod(0o644)
    path.write_bytes(raw_disk(mark=b"2"))
    for action in (lambda: where.copy(found, "site:a", "me", quiet), lambda: where.resize(found, 2 << 20, "me", quiet)):
        with pytest.raises(GuestError, match="is not what its name says"):
            action()
    path.unlink()
    with pytest.raises(GuestError, match="cannot be read"):
        where.copy(found, "site:a", "me", quiet)
    assert where.store("site").list_revisions() == {}
    assert blobs(where, "site") == set()


def test_a_raw_disk_grows_and_never_shrinks(tmp_path: Path) -> None:
    where = repositories(tmp_path)
    found = with_kernel(where, tmp_path)
    made = where.resize(found, (8 << 20) + 1, "me", quiet)
    assert (made.uri, made.image.size) == ("user:a@2", (8 << 20) + 512)
    content = where.store().blob_path(made.image.disk).read_bytes()
    assert content == raw_disk().ljust((8 << 20) + 512, b"\0")
    assert made.image.kernel == found.image.kernel
    assert [each.problem for each in verify_store(where.store(), quiet)] == [None, None]
    for size in (0, 1 << 20, (1 << 20) - 512):
        with pytest.raises(UsageError, match="it can only grow") as caught:
            where.resize(found, size, "me", quiet)
        assert "cut off the end" in (caught.value.hint or "")
    with pytest.raises(UsageError, match="absurd"):
        where.resize(found, 1 << 60, "me", quiet)
    assert len(where.list_all()) == 2
    assert len(blobs(where, "user")) == 3


@pytest.mark.allow_run  # qemu-img
@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="needs qemu-img")
def test_a_qcow2_disk_grows(tmp_path: Path) -> None:
    from pvc import run

    where = repositories(tmp_path)
    run.run(["qemu-img", "create", "-q", "-f", "qcow2", tmp_path / "q", "16M"])
    found = where.import_file(Incoming(tmp_path / "q", "q"), quiet)
    made = where.resize(found, 64 << 20, "me", quiet)
    assert (made.image.size, made.image.format) == (64 << 20, found.image.format)
    where.verify(made)
    assert [each.problem for each in verify_store(where.store(), quiet)] == [None, None]


def test_verification_reads_everything_once_and_names_what_is_wrong(tmp_path: Path) -> None:
    where = repositories(tmp_path)
    for name, mark in (("a", b"1"), ("b", b"1"), ("c", b"3"), ("d", b"4"), ("e", b"5")):
        import_raw(where, tmp_path, name, mark)
    store = where.store()
    read: list[str] = []
    verdicts = verify_store(store, lambda what, done, _: read.append(what) if not done else None)
    assert verdicts == [Verdict(f"user:{name}@1") for name in "abcde"]
    assert read == [f"user:{name}@1" for name in "acde"]
    flipped = store.blob_path(where.find("a").disk)
    flipped.chmod(0o644)
    flipped.write_bytes(raw_disk(mark=b"2"))
    short = store.blob_path(where.find("c").disk)
    short.chmod(0o644)
    short.write_bytes(b"")
    store.blob_path(where.find("d").disk).unlink()
    meta = store.path / "meta" / "e@1.json"
    meta.chmod(0o644)
    meta.write_text(meta.read_text().replace(f"{1 << 20}}}\n", f"{1 << 21}}}\n"))
    texts = {each.uri[5]: each.problem or "" for each in verify_store(store, quiet)}
    assert "has other content: sha256" in texts["a"]
    assert texts["b"] == texts["a"]
    assert "0 bytes instead of 1048576" in texts["c"]
    assert "No such file" in texts["d"]
    assert "instead of 2097152" in texts["e"]
    meta.write_text("{")
    assert "e@1 of repository 'user' is damaged" in (verify_store(store, quiet, [("e", 1)])[0].problem or "")


def test_a_dry_run_removes_nothing(tmp_path: Path) -> None:
    where = repositories(tmp_path)
    import_raw(where, tmp_path, "a", b"1")
    import_raw(where, tmp_path, "b", b"2")
    store = where.store()
    (store.path / "meta" / "a@1.json").unlink()
    told = store.collect(dry_run=True)
    assert told.files == 1
    assert len(blobs(where, "user")) == 2
    assert store.collect() == told
    assert len(blobs(where, "user")) == 1


def test_who_has_an_image_open_goes_on_reading(tmp_path: Path) -> None:
    where = repositories(tmp_path)
    import_raw(where, tmp_path, "a", b"1")
    with where.store().blob_path(where.find("a").disk).open("rb") as stream:
        where.delete("a")
        assert stream.read() == raw_disk(mark=b"1")
