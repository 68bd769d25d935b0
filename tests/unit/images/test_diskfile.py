# SPDX-License-Identifier: Apache-2.0
"""Disks of images as files of other formats: their content, their holes, and what is left of a killed export."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pvc.cli import main
from pvc.cli.imagefiles import DISK_FORMATS
from pvc.errors import GuestError, UsageError
from pvc.host.qemuimg import EXPORTS
from pvc.images.chain import backing_name
from pvc.images.diskfile import export_disk
from pvc.images.repository import FoundImage, Repositories
from pvc.images.save import Changed, save_changed
from pvc.images.transfer import Incoming
from tests.unit.images.disks import Qcow2, bz_image, import_raw, quiet, raw_disk, repositories
from tests.waits import wait_until

pytestmark = pytest.mark.allow_run
SIZE = 24 << 20
OTHER = 12345


def qemu(*words: object, ok: tuple[int, ...] = (0,)) -> str:
    done = subprocess.run(["qemu-img", *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode in ok, done.stderr
    return done.stdout


def write(path: Path, at: int, data: bytes) -> None:
    """Have QEMU write whole clusters into a disk: of others it would have to know what is below."""
    (path.parent / "bytes").write_bytes(data)
    command = f"write -q -s {path.parent}/bytes {at} {len(data)}"
    backing = {"driver": "qcow2", "file": {"driver": "file", "filename": str(path)}, "backing": None}
    subprocess.run(["qemu-io", "-c", command, f"json:{json.dumps(backing)}"], check=True)


@pytest.fixture
def chain(tmp_path: Path) -> Repositories:
    """``top``, three layers: a raw disk with holes, and two times some more of it."""
    where = repositories(tmp_path)
    chance = random.Random(7)
    content = bytearray(raw_disk(SIZE, b"base"))
    content[5 << 20 : (5 << 20) + 100_000] = chance.randbytes(100_000)
    (tmp_path / "disk").write_bytes(content)
    where.import_file(Incoming(tmp_path / "disk", "base"), quiet)
    for name, base, at in (("middle", "base", 9 << 20), ("top", "middle", (5 << 20) + (64 << 10))):
        found = where.locate(base)
        changed = Changed(SIZE, found.image, where.store())
        data = chance.randbytes(64 << 10)
        content[at : at + len(data)] = data
        save_changed(changed, where.store(), name, "me", lambda path, at=at, data=data: write(path, at, data), quiet)  # type: ignore[misc]
    (tmp_path / "expected.raw").write_bytes(content)
    return where


def test_the_command_knows_all_formats() -> None:
    assert tuple(EXPORTS) == DISK_FORMATS


@pytest.mark.parametrize("kind", DISK_FORMATS)
def test_every_format_holds_the_disk_and_its_holes(chain: Repositories, tmp_path: Path, kind: str) -> None:
    told: list[tuple[str, int, int]] = []
    target = tmp_path / f"a file.{kind}"
    export_disk(chain, chain.locate("top"), target, kind, lambda *words: told.append(words))
    qemu("compare", "-f", kind, "-F", "raw", target, tmp_path / "expected.raw")
    facts = json.loads(qemu("info", "-f", kind, "--output=json", target))
    assert facts["virtual-size"] == SIZE
    assert "backing-filename" not in facts
    # VHDX has a log and a table of a MiB each, VHD blocks of 2 MiB.
    assert target.stat().st_blocks * 512 < SIZE // 2
    assert told[-1] == ("top@1", SIZE, SIZE)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


@pytest.mark.parametrize("kind", [kind for kind in DISK_FORMATS if kind != "raw"])
def test_what_is_exported_comes_back_by_an_import(chain: Repositories, tmp_path: Path, kind: str) -> None:
    target = tmp_path / f"top.{kind}"
    export_disk(chain, chain.locate("top"), target, kind, quiet)
    found = chain.import_file(Incoming(target, "back"), quiet)
    stored = chain.store().blob_path(found.image.disk)
    qemu("compare", "-f", "qcow2", "-F", "raw", stored, tmp_path / "expected.raw")


def test_a_vmdk_has_its_own_name_in_it(chain: Repositories, tmp_path: Path) -> None:
    export_disk(chain, chain.locate("top"), tmp_path / "disk1.vmdk", "vmdk", quiet)
    assert b'SPARSE "disk1.vmdk"' in (tmp_path / "disk1.vmdk").read_bytes()[:4096]
    export_disk(chain, chain.locate("top"), tmp_path / 'a "b".vmdk', "vmdk", quiet)
    assert b'SPARSE "disk.vmdk"' in (tmp_path / 'a "b".vmdk').read_bytes()[:4096]


@pytest.mark.parametrize("kind", ["raw", "vmdk"])
def test_nothing_is_overwritten_unless_it_is_said(chain: Repositories, tmp_path: Path, kind: str) -> None:
    top, target, elsewhere = chain.locate("top"), tmp_path / "x", tmp_path / "elsewhere"
    for make in (lambda: target.write_text("mine"), lambda: target.symlink_to(elsewhere), target.mkdir):
        make()
        with pytest.raises(UsageError, match="exists"):
            export_disk(chain, top, target, kind, quiet)
        target.rmdir() if target.is_dir() else target.unlink()
    assert not elsewhere.exists()
    target.symlink_to(elsewhere)
    with pytest.raises(UsageError, match="is no file"):
        export_disk(chain, top, target, kind, quiet, force=True)
    target.unlink()
    target.write_text("mine")
    export_disk(chain, top, target, kind, quiet, force=True)
    qemu("compare", "-f", kind, "-F", "raw", target, tmp_path / "expected.raw")
    with pytest.raises(UsageError, match="no directory"):
        export_disk(chain, top, tmp_path / "none" / "x", kind, quiet)


def test_a_name_that_comes_meanwhile_stays(chain: Repositories, tmp_path: Path) -> None:
    target = tmp_path / "x.raw"

    def come(name: str, done: int, total: int) -> None:
        if name == "top@1" and done == total:
            target.write_text("another's")

    with pytest.raises(UsageError, match="exists"):
        export_disk(chain, chain.locate("top"), target, "raw", come)
    assert target.read_text() == "another's"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".pvc")] == []


def test_a_damaged_layer_is_told(chain: Repositories, tmp_path: Path) -> None:
    base = chain.find("base").disk
    path = chain.store().blob_path(base)
    path.chmod(0o644)
    with path.open("r+b") as stream:
        stream.seek(7 << 20)
        stream.write(b"!")
    with pytest.raises(GuestError, match="is not what its name says"):
        export_disk(chain, chain.locate("top"), tmp_path / "x", "raw", quiet)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("kind", ["raw", "qcow2", "vmdk"])
def test_no_header_leads_to_a_file_of_the_caller(tmp_path: Path, kind: str) -> None:
    """Whoever owns a repository writes another header: a secret as backing file, as data file."""
    where = repositories(tmp_path)
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret!".ljust(1 << 20, b"\0"))
    import_raw(where, tmp_path, "base")
    found = where.locate("base")
    save_changed(Changed(1 << 20, found.image, where.store()), where.store(), "top", "me", lambda _path: None, quiet)
    top = where.locate("top")
    path = where.store().blob_path(top.image.disk)
    honest = path.read_bytes()
    name = backing_name(found.image.disk).encode()
    at = honest.index(name)
    led = str(secret).encode()
    assert len(led) < 512
    stolen = bytearray(honest)
    stolen[at : at + len(led)] = led
    stolen[16:20] = len(led).to_bytes(4, "big")
    empty = Qcow2(size=1 << 20, l1_entries=2, incompatible=4).encode()
    for bad in (bytes(stolen), empty.ljust(len(honest), b"\0")[: len(honest)]):
        path.chmod(0o644)
        path.write_bytes(bad)
        with pytest.raises(GuestError):
            export_disk(where, FoundImage("user", top.image), tmp_path / "out", kind, quiet)
        assert not (tmp_path / "out").exists()
    path.write_bytes(honest)
    export_disk(where, top, tmp_path / "out", kind, quiet)
    assert b"secret!" not in (tmp_path / "out").read_bytes()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_header_that_its_owner_can_exchange_is_copied_first(chain: Repositories, tmp_path: Path) -> None:
    """qemu-img reads what was looked at, whatever another user writes to the file meanwhile."""
    top = chain.locate("top")
    path = chain.store().blob_path(top.image.disk)
    honest = path.read_bytes()
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret!".ljust(SIZE, b"\0"))
    name = backing_name(top.image.below[-1].blob).encode()
    stolen = bytearray(honest)
    at = honest.index(name)
    stolen[at : at + len(name)] = (b"/" * len(name) + str(secret).encode())[-len(name) :]
    os.chown(path, OTHER, OTHER)
    done = threading.Event()

    def exchange(label: str, at: int, total: int) -> None:
        if label == "top@1" and at == 0 and not done.is_set():
            with path.open("r+b") as stream:
                stream.write(stolen)
            done.set()

    target = tmp_path / "out.raw"
    export_disk(chain, top, target, "raw", exchange)
    assert done.is_set()
    assert target.read_bytes() == (tmp_path / "expected.raw").read_bytes()


def test_a_killed_export_leaves_what_the_next_one_removes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    (home / ".pvc").mkdir(parents=True)
    (home / ".pvc/repos.yaml").write_text(f"repos:\n  - {{name: user, path: {tmp_path}/user}}\n")
    monkeypatch.setenv("HOME", str(home))
    where = repositories(tmp_path)
    (tmp_path / "disk").write_bytes(raw_disk(1 << 20) + random.Random(3).randbytes(64 << 20))
    where.import_file(Incoming(tmp_path / "disk", "a"), quiet)
    out = tmp_path / "out"
    out.mkdir()
    child = (
        "import os, signal, sys\n"
        "from pvc.cli import progress\n"
        "tell = progress.CopyProgress.__call__\n"
        "def stop(self, name, done, total):\n"
        "    tell(self, name, done, total)\n"
        "    if name == 'a@1' and 0 < done < total: os.kill(os.getpid(), signal.SIGKILL)\n"
        "progress.CopyProgress.__call__ = stop\n"
        "from pvc.cli import main\n"
        "sys.exit(main.run(sys.argv[1:]))\n"
    )
    words = ["image", "export", "--format", "qcow2", "a", f"{out}/x.qcow2"]
    killed = subprocess.run([sys.executable, "-c", child, *words], env={**os.environ, "HOME": str(home)}, check=False)
    assert killed.returncode == -signal.SIGKILL
    (left,) = out.iterdir()
    assert left.name.startswith(".pvc-export-")
    # Its qemu-img has gone with it, so nothing is written there any more.
    wait_until(lambda: not writers_of(left), lack=lambda: writers_of(left))
    # What a moment ago may have been made by somebody who has not locked it yet is left alone.
    old = left.stat().st_mtime - 10
    os.utime(left, (old, old))
    assert main.run(words) == 0
    assert [path.name for path in out.iterdir()] == ["x.qcow2"]
    qemu("compare", "-f", "qcow2", "-F", "raw", out / "x.qcow2", where.store().blob_path(where.find("a").disk))


def writers_of(directory: Path) -> list[str]:
    found = []
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            target = os.readlink(link)
        except OSError:
            continue
        if target.startswith(f"{directory}/"):
            found.append(target)
    return found


def test_by_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"
    (home / ".pvc").mkdir(parents=True)
    (home / ".pvc/repos.yaml").write_text(f"repos:\n  - {{name: user, path: {tmp_path}/user}}\n")
    monkeypatch.setenv("HOME", str(home))
    where = repositories(tmp_path)
    (tmp_path / "disk").write_bytes(raw_disk(8 << 20))
    (tmp_path / "kernel").write_bytes(bz_image())
    where.import_file(Incoming(tmp_path / "disk", "a", kernel=tmp_path / "kernel"), quiet)
    target = tmp_path / "a.vdi"
    words = ["image", "export", "--format", "vdi"]
    assert main.run([*words, "a@1", str(target)]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("exported user:a@1: vdi, a disk of 8.0M, ")
    assert "kernel of its own" in err
    assert main.run([*words, "a", str(target)]) == 2
    assert "--force" in capsys.readouterr().err
    assert main.run([*words, "--force", "a", str(target)]) == 0
    for wrong in (
        ["a", "-"],
        ["a", "a", str(tmp_path / "b")],
        ["--all", str(tmp_path / "b")],
        ["a", f"oci:{tmp_path}/o"],
    ):
        assert main.run([*words, *wrong]) == 2, wrong
    assert main.run(["image", "export", "a", str(target)]) == 2
    assert main.run(["image", "export", "--force", "a", str(target)]) == 0
    assert main.run(["image", "import", str(target), "again"]) == 0
