# SPDX-License-Identifier: Apache-2.0
"""Files of repositories whose owner exchanges them: what is opened, and what is changed by whom."""

from __future__ import annotations

import os
import stat
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest

from pvc import files
from pvc.errors import GuestError
from pvc.host import qemuimg
from pvc.host.overlay import write_overlay
from pvc.images import opened, scratch
from pvc.images.opened import HeldImages, open_image, private_layers
from pvc.model.vm import DirectBoot, Disk, DiskFile, ExtraDisk, Firmware, VmTemplate
from pvc.plan.disks import plan_empty, plan_overlay
from pvc.plan.qemudrives import find_moved

LOW, HIGH = "ab" + "0" * 62, "cd" + "1" * 62
SIZE = 1 << 20


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A raw layer and a qcow2 on it, by their checksums (which they have not), and a secret beside."""
    place = tmp_path / "repository"
    for name in LOW, HIGH:
        (place / "data" / name[:2]).mkdir(parents=True)
    (place / "data/ab" / LOW).write_bytes(b"low".ljust(SIZE, b"\0"))
    write_overlay(place / "data/cd" / HIGH, plan_overlay(f"../ab/{LOW}", "raw", SIZE))
    (tmp_path / "secret").write_bytes(b"secret".ljust(SIZE, b"\0"))
    return place


def disk_of(repository: Path) -> Disk:
    low, high = repository / "data/ab" / LOW, repository / "data/cd" / HIGH
    return Disk(os.fspath(high), "qcow2", SIZE, (DiskFile(os.fspath(low), "raw"),))


def template_of(repository: Path, boot: DirectBoot | None = None) -> VmTemplate:
    disk = disk_of(repository)
    return VmTemplate(name="t", disk=disk, boot=boot, resource_set="none", disks=(ExtraDisk(disk, SIZE),))


def test_an_honest_chain_is_opened_once_for_all_disks(repository: Path, tmp_path: Path) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(b"MZ")
    held, without = HeldImages(), len(os.listdir("/proc/self/fd"))
    held.fill(template_of(repository, DirectBoot(os.fspath(kernel), None, "")), Firmware(os.fspath(kernel), "/none"))
    assert len(held.fds) == 3
    assert set(held.boot_fds) == {os.fspath(kernel)}
    assert held.uses[opened.inode_of(held.fds[disk_of(repository).path])] == 2
    before = len(os.listdir("/proc/self/fd"))
    held.release()
    assert len(os.listdir("/proc/self/fd")) == before - 3 == without


@pytest.mark.parametrize("which", ["kernel", "initrd"])
def test_a_kernel_that_is_exchanged_is_none_or_the_one_that_was_opened(which: str, tmp_path: Path) -> None:
    """By its owner, for a link to a file of the user's: before the start it is refused, after it nothing changes."""
    place = tmp_path / "boot"
    place.mkdir()
    (tmp_path / "secret").write_bytes(b"secret")
    for name in ("kernel", "initrd"):
        (place / name).write_bytes(b"honest")
    boot = DirectBoot(os.fspath(place / "kernel"), os.fspath(place / "initrd"), "")
    template = VmTemplate(name="t", disk=None, boot=boot, resource_set="none")
    held = HeldImages()
    held.fill(template)
    (place / which).unlink()
    (place / which).symlink_to(tmp_path / "secret")
    assert [os.pread(fd, 100, 0) for fd in held.boot_fds.values()] == [b"honest"] * 2
    held.release()
    with pytest.raises(GuestError, match=f"{place}/{which} cannot be used on this node"):
        held.fill(template)
    held.release()


def test_a_link_of_the_owner_s_is_not_followed(repository: Path, tmp_path: Path) -> None:
    """The name of a layer, or its directory, leads to a private file of the user's."""
    low = repository / "data/ab" / LOW
    low.unlink()
    low.symlink_to(tmp_path / "secret")
    with pytest.raises(OSError, match="symbolic links"):
        open_image(os.fspath(low))
    held = HeldImages()
    with pytest.raises(GuestError, match="cannot be used on this node"):
        held.fill(template_of(repository))
    held.release()
    low.unlink()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "secret").rename(tmp_path / "elsewhere" / LOW)
    low.parent.rmdir()
    low.parent.symlink_to(tmp_path / "elsewhere")
    assert low.read_bytes().startswith(b"secret")
    with pytest.raises(OSError, match="symbolic links"):
        open_image(os.fspath(low))
    # What a site or a user has named may be a link.
    (tmp_path / "mounted").symlink_to(repository)
    os.close(open_image(os.fspath(tmp_path / "mounted/data/cd" / HIGH)))


def test_a_private_file_in_another_s_directory_is_refused(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after link(2) where fs.protected_hardlinks is off; to this test, the directory is root's or another's."""
    low = repository / "data/ab" / LOW
    os.close(open_image(os.fspath(low)))
    facts = os.stat(repository)
    real = os.fstat

    def fstat(fd: int) -> os.stat_result:
        found = real(fd)
        if found.st_ino != facts.st_ino:
            return found
        return os.stat_result((*found[:4], found.st_uid + 12345, *found[5:]))

    monkeypatch.setattr(os, "fstat", fstat)
    low.chmod(0o444)
    os.close(open_image(os.fspath(low)))
    low.chmod(0o600)
    with pytest.raises(PermissionError, match="private file of yours"):
        open_image(os.fspath(low))


def test_firmware_that_others_can_change_or_that_leads_elsewhere_is_refused(repository: Path, tmp_path: Path) -> None:
    """A descriptor file of the user's names it, or whoever has exchanged it since."""
    code = tmp_path / "code"
    write_overlay(code, plan_empty(SIZE))
    (tmp_path / "link").symlink_to(code)
    held = HeldImages()
    # The honest twin: distributions name theirs by links.
    held.fill(template_of(repository), Firmware(os.fspath(tmp_path / "link"), "/none", "qcow2"))
    held.release()
    code.chmod(0o646)
    with pytest.raises(GuestError, match="others can write to it"):
        held.fill(template_of(repository), Firmware(os.fspath(code), "/none", "qcow2"))
    held.release()
    code.chmod(0o644)
    code.unlink()
    write_overlay(code, plan_overlay("/etc/shadow", "raw", SIZE))
    with pytest.raises(GuestError, match="is refused"):
        held.fill(template_of(repository), Firmware(os.fspath(code), "/none", "qcow2"))
    held.release()


@pytest.mark.parametrize("backing", ["../ab/other", "/etc/shadow", "nbd://host/x", ""])
def test_a_header_that_names_another_file_is_refused(repository: Path, backing: str) -> None:
    high = repository / "data/cd" / HIGH
    high.unlink()
    write_overlay(high, plan_overlay(backing, "raw", SIZE) if backing else plan_empty(SIZE))
    held = HeldImages()
    with pytest.raises(GuestError, match="is refused"):
        held.fill(template_of(repository))
    held.release()


def test_what_others_can_write_is_copied_before_a_program_reads_its_header(repository: Path, tmp_path: Path) -> None:
    high = repository / "data/cd" / HIGH
    with ExitStack() as copies:
        layers = private_layers(disk_of(repository), tmp_path, copies)
        assert [kind for _, kind in layers] == ["raw", "qcow2"]
        assert opened.inode_of(layers[1][0])[1] == high.stat().st_ino
    high.chmod(0o666)
    with ExitStack() as copies:
        layers = private_layers(disk_of(repository), tmp_path, copies)
        copy = layers[1][0]
        assert opened.inode_of(copy)[1] != high.stat().st_ino
        before = high.read_bytes()
        high.write_bytes(b"evil".ljust(len(before), b"\0"))
        assert os.pread(copy, len(before), 0) == before


@pytest.mark.allow_run
def test_a_flat_disk_is_what_was_looked_at(repository: Path, tmp_path: Path) -> None:
    """Its layers' owner makes links of their names meanwhile, and writes another header in place."""
    high, low = repository / "data/cd" / HIGH, repository / "data/ab" / LOW
    high.chmod(0o666)
    with ExitStack() as copies:
        layers = private_layers(disk_of(repository), tmp_path, copies)
        high.write_bytes(b"QFI\xfbevil")
        low.rename(tmp_path / "low")
        low.symlink_to(tmp_path / "secret")
        qemuimg.flatten(layers, tmp_path / "flat", lambda _: None)
    subprocess.run(["qemu-img", "convert", "-O", "raw", tmp_path / "flat", tmp_path / "out"], check=True)
    assert (tmp_path / "out").read_bytes().startswith(b"low")
    (tmp_path / "link").symlink_to(tmp_path / "secret")
    fd = os.open(tmp_path / "out", os.O_RDONLY)
    with pytest.raises(FileExistsError):
        qemuimg.flatten([(fd, "raw")], tmp_path / "link", lambda _: None)
    os.close(fd)
    assert (tmp_path / "secret").read_bytes().startswith(b"secret")


def test_a_mode_is_never_changed_through_a_link(tmp_path: Path) -> None:
    """Whoever owns a repository's directory exchanges what was made there a moment ago."""
    secret, link = tmp_path / "secret", tmp_path / "link"
    secret.touch(0o600)
    link.symlink_to(secret)
    with pytest.raises(OSError, match="symbolic links"):
        files.set_mode(link, 0o444)
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    files.set_mode(secret, 0o444)
    assert stat.S_IMODE(secret.stat().st_mode) == 0o444
    scratch.make_dir(tmp_path / "made", 0o755)
    assert stat.S_IMODE((tmp_path / "made").stat().st_mode) == 0o755
    with pytest.raises(OSError, match="symbolic links"):
        os.close(files.open_own(link, os.O_RDWR))
    os.close(files.open_own(secret))


def test_a_header_that_changed_shows_in_what_qemu_says() -> None:
    """Shapes of QEMU's answer to query-named-block-nodes (qapi/block-core.json, ImageInfoSpecificQCow2)."""
    file = {"node-name": "#block1", "image": {"filename": "/dev/fdset/200", "format": "file"}}
    plain = {"type": "qcow2", "data": {"compat": "1.1", "corrupt": False}}
    moved = {"type": "qcow2", "data": {"compat": "1.1", "data-file": "/home/victim/secret"}}

    def node(name: str, specific: dict[str, object]) -> dict[str, object]:
        return {"node-name": name, "image": {"filename": "/r/base", "format-specific": specific}}

    ours = ["disk-below0", "extra3-below12", "save-0af3", "libvirt-2-format", "firmware", "variables"]
    assert find_moved([file, *(node(name, plain) for name in ours)]) is None
    for name in ours:
        assert find_moved([file, node(name, moved)]) == "/r/base"
    # The user's own arguments are the user's own business.
    assert find_moved([node("mine", moved), node("#block7", moved)]) is None
