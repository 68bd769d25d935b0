# SPDX-License-Identifier: Apache-2.0
"""Repositories of pcocc's: their images with all revisions, what cannot be taken, and what hostile ones get."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pvc.cli import main
from pvc.errors import HostError, UsageError
from pvc.images.diskfile import export_disk
from pvc.images.pcocc import Left, read_repository
from pvc.images.pcoccimport import Taken, take_images
from pvc.images.repository import Repositories
from pvc.images.verify import verify_store
from tests.unit.images.disks import Qcow2, import_raw, quiet, raw_disk, repositories
from tests.unit.images.faults import die, run_at
from tests.unit.images.test_faults import check, check_clean

pytestmark = pytest.mark.allow_run
SIZE = 2 << 20


def qemu(*words: object) -> None:
    subprocess.run([str(word) for word in words], check=True, capture_output=True)


@dataclass
class Pcocc:
    """A repository as pcocc has them; ``contents``: what each revision's disk holds."""

    path: Path
    version: int = 2
    contents: dict[str, bytes] = field(default_factory=dict)
    _chance: random.Random = field(default_factory=lambda: random.Random(5))

    def __post_init__(self) -> None:
        for name in ("data", "meta", ".tmp"):
            (self.path / name).mkdir(parents=True)
        (self.path / ".config").write_text(f"{{version: {self.version}}}\n")

    def put(self, file: Path) -> str:
        name = hashlib.sha256(file.read_bytes()).hexdigest()
        (self.path / "data" / name[:2]).mkdir(exist_ok=True)
        file.chmod(0o444)
        file.rename(self.path / "data" / name[:2] / name)
        return name

    def describe(self, name: str, revision: int, blobs: list[str], **changes: object) -> Path:
        data = {
            "name": name,
            "revision": revision,
            "kind": "vm",
            "owner": "anne",
            "timestamp": 1_600_000_000.5 + revision,
            "data_blobs": blobs,
            "custom_meta": {},
            **changes,
        }
        file = self.path / "meta" / f"{name}@{revision}"
        if self.version == 1:
            digest = hashlib.sha256(f"{name}\n{revision}".encode()).hexdigest()
            file = self.path / "meta" / digest[:2] / digest
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(data))
        return file

    def full(self, name: str, revision: int = 0, compat: str = "1.1") -> list[str]:
        """An image of one layer, as an import makes it."""
        raw, work = self.path / ".tmp/raw", self.path / ".tmp/work"
        content = bytearray(raw_disk(SIZE))
        content[1 << 20 : (1 << 20) + 4096] = self._chance.randbytes(4096)
        raw.write_bytes(content)
        qemu("qemu-img", "convert", "-O", "qcow2", "-o", f"compat={compat}", raw, work)
        raw.unlink()
        blobs = [self.put(work)]
        self.describe(name, revision, blobs)
        self.contents[f"{name}@{revision + 1}"] = bytes(content)
        return blobs

    def save(
        self, name: str, revision: int, below: list[str], compat: str = "1.1", named: str = "../../data/{0:.2}/{0}"
    ) -> list[str]:
        """One more layer, as a save makes it."""
        work, data = self.path / ".tmp/work", self._chance.randbytes(65536)
        (self.path / ".tmp/bytes").write_bytes(data)
        base = self.path / "data" / below[-1][:2] / below[-1]
        qemu("qemu-img", "create", "-q", "-f", "qcow2", "-o", f"compat={compat}", "-b", base, "-F", "qcow2", work)
        qemu("qemu-io", "-c", f"write -q -s {self.path}/.tmp/bytes {revision << 16} 65536", work)
        lead = named.format(below[-1])
        qemu("qemu-img", "rebase", "-u", "-b", lead, "-F", "qcow2", work)
        (self.path / ".tmp/bytes").unlink()
        blobs = [*below, self.put(work)]
        self.describe(name, revision, blobs)
        content = bytearray(self.contents[f"{name}@{revision}"])
        content[revision << 16 : (revision << 16) + 65536] = data
        self.contents[f"{name}@{revision + 1}"] = bytes(content)
        return blobs


def take(where: Repositories, source: Path, only: str | None = None) -> list[Taken | Left]:
    found = read_repository(source)
    return [*found.left, *take_images(found, where.ensure(None), "me", quiet, only=only)]


def disk_of(where: Repositories, name: str, tmp_path: Path) -> bytes:
    export_disk(where, where.locate(name), tmp_path / "out", "raw", quiet, force=True)
    return (tmp_path / "out").read_bytes()


def small(path: Path) -> Pcocc:
    """Two images, one of which has three revisions on top of each other and a later one by itself."""
    source = Pcocc(path)
    blobs = source.save("vm", 1, source.full("vm"), compat="0.10")
    source.save("vm", 2, blobs)
    source.full("vm", 4, compat="0.10")
    source.full("other")
    return source


def test_all_revisions_come_as_they_were(tmp_path: Path) -> None:
    source, where = small(tmp_path / "theirs"), repositories(tmp_path)
    found = take(where, source.path)
    assert [(each.outcome, [str(one) for one in each.images]) for each in found if isinstance(each, Taken)] == [
        ("taken", ["other@1"]),
        ("taken", ["vm@1", "vm@2", "vm@3", "vm@5"]),
    ]
    assert len(found) == 2
    assert [each.uri for each in where.list_all()] == [f"user:{name}" for name in sorted(source.contents)]
    for name, content in source.contents.items():
        assert disk_of(where, name, tmp_path) == content, name
    assert {each.problem for each in verify_store(where.store(), quiet)} == {None}
    first, third = where.find("vm@1"), where.find("vm@3")
    # What revisions have in common is there once, and the lowest layer is the file that it was.
    assert [each.blob for each in third.below] == [each.blob for each in where.find("vm@2").layers]
    assert first.disk == third.below[0].blob
    assert (source.path / "data" / first.disk.sha256[:2] / first.disk.sha256).is_file()
    assert (first.created, first.owner) == (1_600_000_000.5, "me")
    assert first.hints["pcocc"].startswith("vm@0 by anne, ")
    # One more of pvc's own is the next.
    assert import_raw(where, tmp_path, "vm") == "user:vm@6"


def test_again_it_takes_what_is_missing(tmp_path: Path) -> None:
    source, where = small(tmp_path / "theirs"), repositories(tmp_path)
    take(where, source.path, only="vm")
    assert [each.uri for each in where.list()] == ["user:vm@5"]
    assert [each.outcome for each in take(where, source.path) if isinstance(each, Taken)] == ["taken", "there"]
    where.delete("vm@2")
    (found,) = take(where, source.path, only="vm")
    assert isinstance(found, Taken)
    assert [str(each) for each in found.images] == ["vm@1", "vm@2", "vm@3", "vm@5"]
    assert disk_of(where, "vm@2", tmp_path) == source.contents["vm@2"]
    with pytest.raises(UsageError, match="no image 'none'"):
        take(where, source.path, only="none")


def test_repositories_of_the_first_version(tmp_path: Path) -> None:
    source, where = Pcocc(tmp_path / "theirs", version=1), repositories(tmp_path)
    source.save("vm", 1, source.full("vm"), named=f"{source.path}/data/{{0:.2}}/{{0}}")
    (found,) = take(where, source.path)
    assert isinstance(found, Taken)
    assert disk_of(where, "vm@2", tmp_path) == source.contents["vm@2"]


def test_an_image_that_is_another_stays(tmp_path: Path) -> None:
    source, where = small(tmp_path / "theirs"), repositories(tmp_path)
    import_raw(where, tmp_path, "vm")
    before = where.find("vm@1")
    found = take(where, source.path)
    assert [(each.what, "is not vm@0" in each.why) for each in found if isinstance(each, Left)] == [("vm", True)]
    assert [each.uri for each in where.list_all()] == ["user:other@1", "user:vm@1"]
    assert where.find("vm@1") == before


def test_what_cannot_be_taken_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    source, where = Pcocc(tmp_path / "theirs"), repositories(tmp_path)
    good = source.full("good")
    source.full("a")
    source.full("b")
    meta, data = source.path / "meta", source.path / "data"
    source.describe("container", 0, ["0" * 64], kind="ctr", custom_meta={"oci_index": {}})
    source.describe("strange", 0, good, kind="sound")
    (meta / "moved@3").write_text((meta / "good@0").read_text())
    source.describe("_hidden", 0, good)
    source.describe("gone", 0, ["0" * 64])
    source.describe("none", 0, [])
    source.describe("swapped", 0, source.full("swapped"))
    source.describe("swapped", 1, [*good, *source.full("x1")])
    (meta / "text@0").write_text("a: [")
    (meta / "large@0").write_bytes(b" " * (2 << 20))
    (meta / "link@0").symlink_to(meta / "good@0")
    raw = source.path / ".tmp/raw"
    raw.write_bytes(raw_disk(SIZE, b"raw"))
    source.describe("raw", 0, [source.put(raw)])
    damaged = source.full("damaged")[0]
    (data / damaged[:2] / damaged).chmod(0o644)
    with (data / damaged[:2] / damaged).open("r+b") as stream:
        stream.seek(-1, 2)
        stream.write(b"!")
    linked = source.full("linked")[0]
    (data / linked[:2] / linked).rename(tmp_path / "elsewhere")
    (data / linked[:2] / linked).symlink_to(tmp_path / "elsewhere")

    found = take(where, source.path)
    left = {each.what: each.why for each in found if isinstance(each, Left)}
    told = {
        "container@0": "is a container image",
        "meta/strange@0": "unknown",
        "meta/moved@3": "describes good@0, which is not its name",
        "meta/_hidden@0": "_hidden",
        "meta/none@0": "lists no files",
        "meta/text@0": "is no description",
        "meta/large@0": "is larger than 1 MiB",
        "meta/link@0": "symbolic link",
        "gone": "cannot be read",
        "swapped": "as the file below it",
        "raw": "qcow2",
        "damaged": "is not what its name says",
        "linked": "cannot be read",
    }
    for what, why in told.items():
        assert why in left.get(what, ""), (what, left)
    assert left.keys() == told.keys()
    # Of an image that has one bad revision none is there.
    assert sorted({each.image.name for each in where.list_all()}) == ["a", "b", "good", "x1"]
    assert {each.problem for each in verify_store(where.store(), quiet)} == {None}
    assert os.listdir(where.store().path / ".tmp") == []


@pytest.mark.parametrize("way", ["backing", "lowest", "data"])
def test_no_header_leads_to_a_file_of_the_caller(tmp_path: Path, way: str) -> None:
    source, where = Pcocc(tmp_path / "theirs"), repositories(tmp_path)
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret!".ljust(SIZE, b"\0"))
    blobs = source.full("vm")
    work = source.path / ".tmp/work"
    if way == "data":
        work.write_bytes(Qcow2(incompatible=4).encode())
        source.describe("vm", 1, [source.put(work)])
    else:
        qemu("qemu-img", "create", "-q", "-f", "qcow2", "-b", secret, "-F", "raw", work)
        source.describe("vm", 1, [source.put(work)] if way == "lowest" else [*blobs, source.put(work)])
    (found,) = take(where, source.path)
    assert isinstance(found, Left)
    assert where.list_all() == ()
    for path in where.store().path.rglob("*"):
        assert not path.is_file() or b"secret!" not in path.read_bytes()


def test_a_path_that_ends_with_the_right_name_is_not_followed(tmp_path: Path) -> None:
    """The layer below is the one that the description lists, whatever lies at the end of the path."""
    source, where = Pcocc(tmp_path / "theirs"), repositories(tmp_path)
    blobs = source.full("vm")
    trap = tmp_path / "trap" / blobs[0]
    trap.parent.mkdir()
    qemu("qemu-img", "create", "-q", "-f", "qcow2", trap, str(SIZE))
    qemu("qemu-io", "-c", "write -q -P 7 0 1M", trap)
    source.save("vm", 1, blobs, named=f"{tmp_path}/trap/{{0}}")
    take(where, source.path)
    assert disk_of(where, "vm@2", tmp_path) == source.contents["vm@2"]


@pytest.mark.parametrize("content", ["", "version: 3\n", "[", "version: two\n"])
def test_what_is_no_repository_of_pcoccs(tmp_path: Path, content: str) -> None:
    source = Pcocc(tmp_path / "theirs")
    (source.path / ".config").write_text(content)
    with pytest.raises(UsageError):
        read_repository(source.path)
    with pytest.raises(UsageError, match="cannot read"):
        read_repository(tmp_path / "none")


def test_pvcs_own_is_told_as_such(tmp_path: Path) -> None:
    where = repositories(tmp_path, "user", "site")
    import_raw(where, tmp_path, "a", repository="site")
    (left,) = read_repository(tmp_path / "site").left
    assert "pvc's own" in left.why


def test_killed_at_any_time_the_next_one_goes_on(tmp_path: Path) -> None:
    source = Pcocc(tmp_path / "theirs")
    source.full("vm")
    source.full("vm", 1)
    where = repositories(tmp_path)
    calls = 0
    # Every call of the system would take minutes; these are other ones each time that something changes.
    for number in range(3, 10_000, 17):
        shutil.rmtree(tmp_path / "user", ignore_errors=True)
        if not run_at(number, lambda: take(where, source.path), die):
            break
        calls += 1
        assert check(where) <= {"vm@1", "vm@2"}
        assert [type(each) for each in take(where, source.path)] == [Taken]
        assert check(where) == {"vm@1", "vm@2"}
        check_clean(where)
    assert calls > 5


def test_interrupted_what_was_taken_stays_and_the_rest_is_as_before(tmp_path: Path) -> None:
    source, where = small(tmp_path / "theirs"), repositories(tmp_path)

    def interrupt(name: str, done: int, _total: int) -> None:
        if name == "vm@1" and done:
            raise KeyboardInterrupt

    repository = read_repository(source.path)
    with pytest.raises(KeyboardInterrupt):
        list(take_images(repository, where.ensure(None), "me", interrupt))
    assert check(where) == {"other@1"}
    check_clean(where)
    assert [each.outcome for each in take(where, source.path) if isinstance(each, Taken)] == ["there", "taken"]


def test_a_revision_that_comes_meanwhile_takes_the_others_back(tmp_path: Path) -> None:
    source, where = small(tmp_path / "theirs"), repositories(tmp_path)
    store = where.ensure(None)

    def come(name: str, done: int, total: int) -> None:
        if name == "vm@2" and done == total:
            (store.path / "meta/vm@3.json").write_text("{}")

    with pytest.raises(HostError, match="vm@3 has come meanwhile"):
        list(take_images(read_repository(source.path), store, "me", come, only="vm"))
    assert os.listdir(store.path / "meta") == ["vm@3.json"]
    (store.path / "meta/vm@3.json").unlink()
    check_clean(where)


def test_by_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"
    (home / ".pvc").mkdir(parents=True)
    (home / ".pvc/repos.yaml").write_text(f"repos:\n  - {{name: user, path: {tmp_path}/user}}\n")
    monkeypatch.setenv("HOME", str(home))
    source = Pcocc(tmp_path / "theirs")
    source.full("vm")
    source.describe("box", 0, ["0" * 64], kind="ctr")
    words = ["image", "import", "--from-pcocc", str(source.path)]
    assert main.run(words) == 0
    out, err = capsys.readouterr()
    assert out == "imported user:vm@1\n"
    assert "not taken: box@0: is a container image" in err
    assert main.run(words) == 0
    assert capsys.readouterr().out == "there already: user:vm@1\n"
    source.describe("gone", 0, ["1" * 64])
    assert main.run(words) == 7
    assert "1 of" in capsys.readouterr().err
    assert main.run([*words, "vm"]) == 0
    assert main.run([*words, "nothing"]) == 2
    assert main.run([*words, "--user", "root"]) == 2
    assert main.run(["image", "import", "--from-pcocc", str(tmp_path)]) == 2
