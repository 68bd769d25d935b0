# SPDX-License-Identifier: Apache-2.0
"""Images as one file, and what a hostile one may not do."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvc.errors import GuestError, PvcError, UsageError
from pvc.images.archive import is_archive
from pvc.images.repository import Repositories
from pvc.images.transfer import Incoming
from pvc.images.verify import verify_store
from tests.unit.images.disks import Qcow2, bz_image, import_raw, quiet, raw_disk, repositories
from tests.unit.images.faults import boundaries, die


def filled(base: Path) -> Repositories:
    where = repositories(base, "user", "site")
    (base / "disk").write_bytes(raw_disk(4096))
    (base / "kernel").write_bytes(bz_image())
    (base / "initrd").write_bytes(b"070701")
    incoming = Incoming(
        base / "disk", "a", kernel=base / "kernel", initrd=base / "initrd", append="quiet", description="d",
        hints={"user": "root"},
    )  # fmt: skip
    where.import_file(incoming, quiet)
    return where


def files(base: Path) -> set[str]:
    return {str(path.relative_to(base)) for path in base.rglob("*") if path.is_file()}


def test_an_archive_brings_the_same_image_elsewhere(tmp_path: Path) -> None:
    where = filled(tmp_path)
    found = where.locate("a")
    target = tmp_path / "a.tar"
    where.export([found], target, quiet)
    assert is_archive(target)
    with tarfile.open(target) as tar:
        names = tar.getnames()
        stream = tar.extractfile("pvc-image.json")
        assert stream is not None
        assert json.load(stream)["images"][0]["name"] == "a"
    assert names == ["pvc-image.json", *(f"data/{blob.sha256}" for blob in found.image.blobs)]
    (first,) = where.import_archive(target, None, "me", quiet, repository="site")
    assert first.uri == "site:a@1"
    (second,) = where.import_archive(target, "b", "me", quiet, repository="site")
    assert second.uri == "site:b@1"
    wanted = replace(found.image, created=first.image.created, owner="me")
    assert first.image == wanted
    assert [each.problem for each in verify_store(where.store("site"), quiet)] == [None, None]
    assert not is_archive(tmp_path / "disk")
    with pytest.raises(UsageError, match="exists"):
        where.export([found], target, quiet)


def test_an_archive_does_not_choose_what_templates_boot(tmp_path: Path) -> None:
    """Its maker calls an image as one that is there: the next revision would be booted in its place."""
    where = filled(tmp_path)
    where.export([where.locate("a")], tmp_path / "a.tar", quiet)
    with pytest.raises(UsageError, match="user:a is there") as caught:
        where.import_archive(tmp_path / "a.tar", None, "me", quiet, repository="user")
    assert "--update" in (caught.value.hint or "")
    assert where.store("user").list_revisions() == {"a": [1]}
    # The honest twins: a name that was given, or that this is meant.
    (made,) = where.import_archive(tmp_path / "a.tar", "a", "me", quiet, repository="user")
    assert made.uri == "user:a@2"
    (made,) = where.import_archive(tmp_path / "a.tar", None, "me", quiet, repository="user", update=True)
    assert made.uri == "user:a@3"


def test_a_repository_in_one_file_has_shared_data_once(tmp_path: Path) -> None:
    where = filled(tmp_path)
    where.copy(where.locate("a"), "user:b", "me", quiet)
    import_raw(where, tmp_path, "c")
    where.export(where.list_all("user"), tmp_path / "all.tar", quiet)
    with tarfile.open(tmp_path / "all.tar") as tar:
        assert len(tar.getnames()) == 1 + 4
    found = where.import_archive(tmp_path / "all.tar", None, "me", quiet, repository="site")
    assert [each.uri for each in found] == ["site:a@1", "site:b@1", "site:c@1"]
    with pytest.raises(UsageError, match="leave NAME away"):
        where.import_archive(tmp_path / "all.tar", "x", "me", quiet, repository="site")


def test_a_damaged_image_is_not_exported(tmp_path: Path) -> None:
    where = filled(tmp_path)
    found = where.locate("a")
    path = where.store().blob_path(found.image.disk)
    path.chmod(0o644)
    path.write_bytes(raw_disk(4096, b"other"))
    before = files(tmp_path)
    with pytest.raises(GuestError, match="is not what its name says"):
        where.export([found], tmp_path / "a.tar", quiet)
    path.unlink()
    with pytest.raises(GuestError, match="cannot be read"):
        where.export([found], tmp_path / "a.tar", quiet)
    with pytest.raises(UsageError, match="cannot write"):
        where.export([found], tmp_path / "no" / "a.tar", quiet)
    assert files(tmp_path) == before - {str(path.relative_to(tmp_path))}


def rewrite(archive: Path, change: Callable[[dict[str, object], dict[str, bytes]], None]) -> None:
    """Unpack an archive with tar's own means, change what is in it, and write it again."""
    with tarfile.open(archive) as tar:
        members = {each.name: (tar.extractfile(each) or io.BytesIO()).read() for each in tar.getmembers()}
    manifest = json.loads(members.pop("pvc-image.json"))
    change(manifest, members)
    with tarfile.open(archive, "w", format=tarfile.GNU_FORMAT) as tar:
        for name, content in {"pvc-image.json": json.dumps(manifest).encode(), **members}.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def first(manifest: dict[str, object]) -> dict[str, object]:
    images = manifest["images"]
    assert isinstance(images, list)
    image = images[0]
    assert isinstance(image, dict)
    return image


HOSTILE: dict[str, Callable[[dict[str, object], dict[str, bytes]], object]] = {
    "not a name": lambda m, _: first(m).update(name="../../etc"),
    "version 2": lambda m, _: m.update(version=2),
    "has no image": lambda m, _: m.update(images=[]),
    "unknown": lambda m, _: first(m).update(path="/etc/shadow"),
    "printable": lambda m, _: first(m).update(description="\x1b[2J"),
    "kernel command line": lambda m, _: first(m).update(append="x" * 3000),
    "no kernel": lambda m, _: first(m).update(kernel=None),
    "is not a blob": lambda m, _: first(m).update(disk={"sha256": "../x", "size": 1}),
    "or has another there": lambda _, d: d.update({"data/../../x": d.pop(next(iter(d)))}),
    "does not end after": lambda _, d: d.update({"more": b"x"}),
    "no plain file": lambda _, d: d.popitem(),
    "is damaged": lambda _, d: d.update({next(iter(d)): bytes(4096)}),
    "not what it should be": lambda m, _: first(m).update(size=1 << 30),
    "it has no qcow2 header": lambda m, _: first(m).update(format="qcow2"),
}


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_archive_is_refused_and_leaves_nothing(tmp_path: Path, text: str) -> None:
    where = filled(tmp_path)
    archive = tmp_path / "a.tar"
    where.export([where.locate("a")], archive, quiet)
    rewrite(archive, HOSTILE[text])  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=text):
        where.import_archive(archive, None, "me", quiet, repository="site")
    assert files(tmp_path / "site") == {".config"}


def test_a_qcow2_in_an_archive_may_not_name_other_files(tmp_path: Path) -> None:
    import hashlib

    where = filled(tmp_path)
    archive = tmp_path / "a.tar"
    where.export([where.locate("a")], archive, quiet)
    disk = Qcow2(backing_offset=200, backing_size=9).encode()
    sha256 = hashlib.sha256(disk).hexdigest()

    def change(manifest: dict[str, object], data: dict[str, bytes]) -> None:
        first(manifest).update(format="qcow2", size=1 << 30, disk={"sha256": sha256, "size": len(disk)})
        rest = list(data.items())[1:]
        data.clear()
        data.update({f"data/{sha256}": disk, **dict(rest)})

    rewrite(archive, change)
    with pytest.raises(UsageError, match="it needs a backing file"):
        where.import_archive(archive, None, "me", quiet, repository="site")
    assert files(tmp_path / "site") == {".config"}


@pytest.mark.parametrize("kind", ["symlink", "hardlink", "device", "pax"])
def test_members_that_are_no_plain_files_are_refused(tmp_path: Path, kind: str) -> None:
    where = filled(tmp_path)
    archive = tmp_path / "a.tar"
    form = tarfile.PAX_FORMAT if kind == "pax" else tarfile.GNU_FORMAT
    with tarfile.open(archive, "w", format=form) as tar:
        info = tarfile.TarInfo("pvc-image.json" + ("é" if kind == "pax" else ""))
        types = {"symlink": tarfile.SYMTYPE, "hardlink": tarfile.LNKTYPE, "device": tarfile.CHRTYPE}
        info.type, info.linkname = types.get(kind, tarfile.REGTYPE), "/etc/passwd"
        tar.addfile(info)
    with pytest.raises(UsageError, match="no plain file"):
        where.import_archive(archive, None, "me", quiet, repository="site")


@given(at=st.integers(0, 12000), value=st.integers(0, 255), cut=st.booleans())
def test_any_damage_is_refused_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, at: int, value: int, cut: bool
) -> None:
    base = tmp_path_factory.mktemp("archive")
    where = filled(base)
    archive = base / "a.tar"
    where.export([where.locate("a")], archive, quiet)
    content = bytearray(archive.read_bytes())
    if cut:
        del content[at:]
    elif at < len(content):
        content[at] = value
    archive.write_bytes(content)
    try:
        where.import_archive(archive, None, "me", quiet, repository="site")
    except PvcError:
        assert files(base / "site") == {".config"}
    else:
        assert [each.problem for each in verify_store(where.store("site"), quiet)] == [None]


def test_a_killed_export_leaves_nothing(tmp_path: Path) -> None:
    where = filled(tmp_path)
    found = where.locate("a")
    out = tmp_path / "out"
    out.mkdir()
    target = out / "a.tar"
    calls = 0
    for _ in boundaries(lambda: where.export([found], target, quiet), die, lambda: target.unlink(missing_ok=True)):
        calls += 1
        assert files(out) <= {"a.tar"}
        assert not target.exists() or is_archive(target)
    assert calls > 3
    assert files(out) == {"a.tar"}


@pytest.mark.allow_run  # zstd
@pytest.mark.skipif(shutil.which("zstd") is None, reason="needs zstd")
def test_a_compressed_archive(tmp_path: Path) -> None:
    where = filled(tmp_path)
    target = tmp_path / "a.zst"
    where.export([where.locate("a")], target, quiet)
    assert target.read_bytes()[:4] == b"\x28\xb5\x2f\xfd"
    assert is_archive(target)
    (made,) = where.import_archive(target, None, "me", quiet, repository="site")
    assert made.uri == "site:a@1"
    target.write_bytes(target.read_bytes()[:-20])
    with pytest.raises(UsageError, match=r"cut off|cannot unpack"):
        where.import_archive(target, "a", "me", quiet, repository="site")
    assert len(where.store("site").list_revisions()["a"]) == 1
