# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pvc
from pvc.errors import GuestError, HostError, UsageError
from pvc.images.repository import Repositories
from pvc.images.resolve import resolve_template
from pvc.images.store import Store
from pvc.images.transfer import Incoming
from pvc.model.site import Repository, Template
from pvc.model.vm import DirectBoot
from tests.unit.images.disks import Qcow2, bz_image, import_raw, quiet, raw_disk, repositories
from tests.waits import wait_until

ROOT = Path(pvc.__file__).parents[1]


def everything(base: Path) -> set[str]:
    return {str(path.relative_to(base)) for path in base.rglob("*") if path.is_file()} - {".lock"}


def test_import_find_list_delete(tmp_path: Path) -> None:
    where = repositories(tmp_path, "user", "site")
    assert where.list() == ()
    assert import_raw(where, tmp_path, "a", b"1") == "user:a@1"
    assert import_raw(where, tmp_path, "a", b"2") == "user:a@2"
    assert import_raw(where, tmp_path, "a", b"3", "site") == "site:a@1"
    assert import_raw(where, tmp_path, "b", b"3", "site") == "site:b@1"
    assert [found.uri for found in where.list()] == ["user:a@2", "site:a@1", "site:b@1"]
    assert [found.uri for found in where.list_all("user")] == ["user:a@1", "user:a@2"]
    assert where.locate("a").uri == "user:a@2"
    assert where.locate("a@1").uri == "user:a@1"
    assert where.locate("site:a").uri == "site:a@1"
    assert where.locate("b").uri == "site:b@1"
    assert where.delete("a")[0] == ("user:a@2",)
    assert where.locate("a").uri == "user:a@1"
    # "a" and "b" of the site have the same content: it goes with the last of them.
    assert where.delete("site:a") == (("site:a@1",), 0)
    where.verify(where.locate("b"))
    removed, freed = where.delete("b", every=True)
    assert removed == ("site:b@1",)
    assert freed > 0
    assert everything(tmp_path / "site") == {".config"}


@pytest.mark.parametrize("uri", ["nope", "a@9", "nowhere:a", "a@0", "../a", ""])
def test_what_is_not_there(tmp_path: Path, uri: str) -> None:
    where = repositories(tmp_path)
    import_raw(where, tmp_path, "a")
    for action in (where.find, where.delete):
        with pytest.raises(UsageError):
            action(uri)


def test_the_users_own_is_private_and_a_sites_is_not(tmp_path: Path) -> None:
    home, site = tmp_path / "home", tmp_path / "site"
    where = Repositories([Repository("user", str(home / "i")), Repository("site", str(site))], home=home)
    old = os.umask(0o077)
    try:
        import_raw(where, tmp_path, "a", repository="user")
        import_raw(where, tmp_path, "a", repository="site")
    finally:
        os.umask(old)
    assert stat.S_IMODE((home / "i").stat().st_mode) == 0o700
    assert stat.S_IMODE(site.stat().st_mode) == 0o755
    for path in site.rglob("*"):
        if path.name == ".lock":
            continue
        assert stat.S_IMODE(path.stat().st_mode) & 0o044 == 0o044, path


def test_a_raw_disk_gets_holes_and_keeps_its_checksum(tmp_path: Path) -> None:
    where = repositories(tmp_path)
    source = tmp_path / "disk"
    source.write_bytes(raw_disk(8 << 20, b"start") + b"end!")
    found = where.import_file(Incoming(source, "a"), quiet)
    stored = where.store().blob_path(found.image.disk)
    assert stored.read_bytes() == source.read_bytes() + bytes(508)
    assert stored.stat().st_blocks * 512 < 1 << 20
    assert found.image.size == (8 << 20) + 512
    where.verify(found)


def test_kernel_and_initrd_come_along(tmp_path: Path) -> None:
    where = repositories(tmp_path)
    (tmp_path / "disk").write_bytes(raw_disk())
    (tmp_path / "kernel").write_bytes(bz_image())
    (tmp_path / "initrd").write_bytes(b"070701")
    incoming = Incoming(tmp_path / "disk", "a", None, tmp_path / "kernel", tmp_path / "initrd", "root=/dev/vda quiet")
    where.import_file(incoming, quiet)
    template = resolve_template(Template("t", "a", "nat"), where)
    assert template.boot is not None
    assert template.disk is not None
    assert Path(template.boot.kernel).read_bytes() == bz_image()
    assert Path(template.boot.initrd or "").read_bytes() == b"070701"
    assert template.boot.append == "root=/dev/vda quiet"
    assert (template.disk.format, template.disk.size) == ("raw", 1 << 20)
    assert resolve_template(Template("t", None, "nat"), where).disk is None
    # A kernel of the template's own goes before, with the command line of the image's.
    own = resolve_template(Template("t", "a", "nat", kernel="/boot/vmlinuz", instance_id="i-1"), where)
    assert own.boot == DirectBoot("/boot/vmlinuz", None, "root=/dev/vda quiet")
    assert own.instance_id == "i-1"
    alone = resolve_template(Template("t", None, "nat", kernel="/boot/vmlinuz"), where)
    assert alone.boot == DirectBoot("/boot/vmlinuz", None, "console=ttyS0 root=/dev/vda1")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"source": Path("/nowhere/disk")}, "cannot read /nowhere/disk"),
        ({"source": Path("/dev/null")}, "not a file"),
        ({"source": Path("/proc/self")}, "Is a directory|not a file"),
        ({"name": "a/b"}, "not a name"),
        ({"name": ""}, "not a name"),
        ({"append": "quiet"}, "need a kernel"),
        ({"initrd": Path("initrd")}, "need a kernel"),
        ({"kernel": Path("text")}, "not a Linux kernel"),
        ({"kernel": Path("empty")}, "is no kernel"),
        ({"kernel": Path("kernel"), "append": "a\nb"}, "printable"),
        ({"source": Path("text")}, "neither a qcow2 header"),
        ({"source": Path("backed")}, "backing file"),
        ({"source": Path("fifo")}, "not a file"),
    ],
)
def test_bad_sources_leave_nothing(tmp_path: Path, change: dict[str, object], text: str) -> None:
    where = repositories(tmp_path)
    (tmp_path / "disk").write_bytes(raw_disk())
    (tmp_path / "kernel").write_bytes(bz_image())
    (tmp_path / "text").write_text("hello\n" * 200)
    (tmp_path / "empty").write_text("")
    (tmp_path / "backed").write_bytes(Qcow2(backing_offset=200, backing_size=9).encode())
    os.mkfifo(tmp_path / "fifo")
    values = {"source": Path("disk"), "name": "a"} | change
    values = {key: tmp_path / value if isinstance(value, Path) else value for key, value in values.items()}
    with pytest.raises(UsageError, match=text):
        where.import_file(Incoming(**values), quiet)  # type: ignore[arg-type]
    assert where.list() == ()
    assert everything(tmp_path / "user") == {".config"}


def test_reuse_makes_no_revision_of_the_same(tmp_path: Path) -> None:
    where = repositories(tmp_path)
    (tmp_path / "disk").write_bytes(raw_disk())
    incoming = Incoming(tmp_path / "disk", "a")
    assert where.import_file(incoming, quiet, reuse=True).uri == "user:a@1"
    assert where.import_file(incoming, quiet, reuse=True).uri == "user:a@1"
    assert where.import_file(incoming, quiet).uri == "user:a@2"
    (tmp_path / "disk").write_bytes(raw_disk(mark=b"other"))
    assert where.import_file(incoming, quiet, reuse=True).uri == "user:a@3"


def blob_of(where: Repositories, uri: str) -> Path:
    path = where.store().blob_path(where.find(uri).disk)
    path.chmod(0o644)
    return path


def test_damage_is_found_and_named_at_use(tmp_path: Path) -> None:
    where = repositories(tmp_path)
    template = Template("t", "a", "nat")
    import_raw(where, tmp_path, "a")
    good = blob_of(where, "a").read_bytes()
    blob_of(where, "a").write_bytes(good[:-512])
    with pytest.raises(GuestError, match=r"user:a@1 is damaged: .* bytes instead of 1048576"):
        resolve_template(template, where)
    blob_of(where, "a").write_bytes(Qcow2().encode().ljust(len(good), b"\0"))
    with pytest.raises(GuestError, match=r"user:a@1 is damaged: .*qcow2"):
        resolve_template(template, where)
    blob_of(where, "a").unlink()
    with pytest.raises(GuestError, match="user:a@1 cannot be used: No such file"):
        resolve_template(template, where)
    # The same image imported again brings the file back.
    import_raw(where, tmp_path, "a")
    resolve_template(Template("t", "a@1", "nat"), where)


def test_a_damaged_description_hides_no_other_image(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    where = repositories(tmp_path)
    import_raw(where, tmp_path, "a", b"1")
    import_raw(where, tmp_path, "b", b"2")
    meta = tmp_path / "user" / "meta" / "a@1.json"
    for content in ("{", "[]", '{"name": "a"}', meta.read_text().replace('"revision":1', '"revision":7')):
        meta.chmod(0o644)
        meta.write_text(content)
        with pytest.raises(GuestError, match="image a@1 of repository 'user' is damaged"):
            where.find("a")
        assert [found.uri for found in where.list()] == ["user:b@1"]
    # While it is unclear what the damaged one needs, no file goes.
    where.delete("b")
    assert len(list((tmp_path / "user" / "data").rglob("?" * 64))) == 2
    assert where.delete("a")[0] == ("user:a@1",)
    assert list((tmp_path / "user" / "data").rglob("?" * 64)) == []


def test_other_directories_and_later_versions_are_left_alone(tmp_path: Path) -> None:
    where = repositories(tmp_path)
    (tmp_path / "user").mkdir()
    (tmp_path / "user" / "thesis.tex").touch()
    with pytest.raises(HostError, match="not an image repository"):
        import_raw(where, tmp_path, "a")
    (tmp_path / "user" / ".config").write_text('{"version": 99}')
    with pytest.raises(HostError, match="version 99"):
        where.find("a")
    assert (tmp_path / "user" / "thesis.tex").exists()


def test_a_repository_being_made_counts_as_absent(tmp_path: Path) -> None:
    store = Store(Repository("user", str(tmp_path / "user")))
    (tmp_path / "user" / "data").mkdir(parents=True)
    (tmp_path / "user" / "..config.abc").touch()
    assert not store.exists()
    store.ensure(private=True)
    assert store.exists()


IMPORT = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from pvc.images.repository import Repositories
from pvc.images.transfer import Incoming
from pvc.model.site import Repository
where = Repositories([Repository("user", sys.argv[2])], home=Path("/"))
for _ in range(int(sys.argv[4])):
    print(where.import_file(Incoming(Path(sys.argv[3]), "a"), lambda *_: None).uri, flush=True)
"""


def start_import(repository: Path, source: Path, count: int) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-I", "-c", IMPORT, ROOT, repository, source, str(count)]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.allow_run  # several writers are several processes
def test_concurrent_writers_never_lose_a_revision(tmp_path: Path) -> None:
    sources = [tmp_path / f"disk{i}" for i in range(4)]
    for i, source in enumerate(sources):
        source.write_bytes(raw_disk(mark=b"%d" % (i // 2)))
    running = [start_import(tmp_path / "user", source, 6) for source in sources]
    said: list[str] = []
    for process in running:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err.decode()
        said += out.decode().split()
    assert sorted(said) == sorted(f"user:a@{i}" for i in range(1, 25))
    where = repositories(tmp_path)
    for found in where.list_all():
        where.verify(found)
    assert len(where.list_all()) == 24
    assert len(list((tmp_path / "user" / "data").rglob("?" * 64))) == 2


@pytest.mark.allow_run  # only a process can be killed
def test_a_killed_import_leaves_nothing(tmp_path: Path) -> None:
    where = repositories(tmp_path)
    import_raw(where, tmp_path, "b")
    before = everything(tmp_path / "user")
    source = tmp_path / "disk"
    source.write_bytes(os.urandom(32 << 20))
    head = raw_disk(512)
    with source.open("r+b") as stream:
        stream.write(head)
    killed = 0

    def is_copied(size: int) -> bool:
        return sum(each.stat().st_size for each in (tmp_path / "user" / ".tmp").rglob("*") if each.is_file()) >= size

    for size in (1, 1 << 20, 16 << 20, 32 << 20):
        process = start_import(tmp_path / "user", source, 1000)
        wait_until(lambda size=size: is_copied(size), bear=(FileNotFoundError,))  # type: ignore[misc]
        process.send_signal(signal.SIGKILL)
        process.communicate()
        killed += 1
        for found in where.list_all():
            where.verify(found)
        where.store().collect()
        assert list((tmp_path / "user" / ".tmp").iterdir()) == []
        if "a" in where.store().list_revisions():
            where.delete("a", every=True)
        assert everything(tmp_path / "user") == before
    assert killed == 4


def test_a_running_writers_file_is_not_swept(tmp_path: Path) -> None:
    where = repositories(tmp_path)
    import_raw(where, tmp_path, "a")
    store = where.store()
    with store.temporary() as (stream, path):
        stream.write(b"half")
        store.collect()
        assert path.exists()
    assert not path.exists()


Step = tuple[str, str, str]
STEP = st.tuples(st.sampled_from(["import", "delete", "delete-all"]), st.sampled_from("ab"), st.sampled_from("xyz"))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEP, max_size=12))
def test_a_repository_is_what_was_put_in(tmp_path_factory: pytest.TempPathFactory, steps: list[Step]) -> None:
    base = tmp_path_factory.mktemp("repo")
    where = repositories(base)
    model: dict[str, dict[int, bytes]] = {"a": {}, "b": {}}
    for action, name, mark in steps:
        revisions = model[name]
        if action == "import":
            uri = import_raw(where, base, name, mark.encode())
            revision = max(revisions, default=0) + 1
            assert uri == f"user:{name}@{revision}"
            revisions[revision] = mark.encode()
        elif revisions:
            where.delete(name, every=action == "delete-all")
            for revision in sorted(revisions)[-1:] if action == "delete" else sorted(revisions):
                del revisions[revision]
    found = {(each.image.name, each.image.revision): each for each in where.list_all()}
    assert set(found) == {(name, revision) for name, revisions in model.items() for revision in revisions}
    contents = set()
    for (name, revision), each in found.items():
        where.verify(each)
        path = where.store().blob_path(each.image.disk)
        assert path.read_bytes() == raw_disk(mark=model[name][revision])
        contents.add(path)
    assert set((base / "user" / "data").rglob("?" * 64)) == contents


def test_metadata_is_plain_json(tmp_path: Path) -> None:
    where = repositories(tmp_path)
    import_raw(where, tmp_path, "a")
    data = json.loads((tmp_path / "user" / "meta" / "a@1.json").read_text())
    assert data["name"] == "a"
    assert data["disk"]["size"] == 1 << 20
