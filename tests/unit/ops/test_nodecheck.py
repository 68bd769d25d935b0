# SPDX-License-Identifier: Apache-2.0
"""What pvc doctor says of a node's directories."""

from __future__ import annotations

import os
from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from pvc.host import netlink
from pvc.model.host import Claim
from pvc.ops.nodecheck import check_files, check_image_cache, check_ranges, check_run_dir
from tests.unit.config.sites import load_site, write_site
from tests.unit.plan.worlds import NAT

# Root, and whoever runs this
OWNERS = {0, os.geteuid()}


def test_a_directory_for_copies_of_images_is_roots(tmp_path: Path) -> None:
    (found,) = check_image_cache(tmp_path / "not" / "there", OWNERS)
    assert (found.verdict.value, found.check) == ("ok", "image-cache-dir")
    assert "MiB are free for copies of images" in found.text
    tmp_path.chmod(0o777)
    (found,) = check_image_cache(tmp_path, OWNERS)
    assert found.verdict.value == "fail"
    assert f"chmod go-w {tmp_path}" in (found.fix or "")
    tmp_path.chmod(0o755)
    (found,) = check_image_cache(tmp_path, OWNERS)
    assert found.verdict.value == "ok"
    (found,) = check_image_cache(tmp_path, {0})
    assert found.verdict.value == ("fail" if os.geteuid() else "ok")  # it belongs to whoever runs this


@pytest.mark.allow_sockets  # asks the kernel for this machine's addresses
def test_ranges_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(load_site(write_site(tmp_path)), networks={})
    (found,) = check_ranges(config)
    assert (found.verdict.value, found.check) == ("ok", "ranges")
    nat = replace(NAT, ext_network=IPv4Network("127.0.0.0/30"))
    held = (Claim("127.0.0.1/8", "this node's network", direct=True),)
    monkeypatch.setattr(netlink.Links, "claims", lambda *_, **__: held)
    wrong = replace(config, networks={"nat": nat}, batch=replace(config.batch, underlay_device="ehto0"))
    device, ext = (each.text for each in check_ranges(wrong))
    assert "settings.underlay-device: this node has no network device ehto0" in device
    assert "nat.settings.ext-network: 127.0.0.0/30 is not free on this node: 127.0.0.0/8 is this node's network" in ext


def test_the_directory_of_jobs_directories_is_one_that_nobody_exchanges(tmp_path: Path) -> None:
    scratch, place = tmp_path / "scratch", tmp_path / "scratch" / "pvc"
    scratch.mkdir()
    scratch.chmod(0o1777)
    for _ in range(2):  # before it is there, and afterwards
        assert [found.verdict.value for found in check_run_dir(place, OWNERS)] != []
        assert not any("must be a directory of root" in found.text for found in check_run_dir(place, OWNERS))
        scratch.chmod(0o777)
        found = next(check_run_dir(place, OWNERS))
        assert (found.verdict.value, found.check) == ("fail", "run-dir")
        assert f"of {scratch}: everybody can write to it" in found.text
        assert f"chmod go-w {scratch}" in (found.fix or "")
        scratch.chmod(0o1777)
        place.mkdir(exist_ok=True)
    place.chmod(0o1777)
    assert f"of {place}: everybody" in next(check_run_dir(place, OWNERS)).text


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_group_that_can_write_above_it_is_told(tmp_path: Path) -> None:
    os.chown(tmp_path, 0, 100)
    tmp_path.chmod(0o775)
    assert f"of {tmp_path}: its group (gid 100) can write" in next(check_run_dir(tmp_path / "pvc")).text
    os.chown(tmp_path, 1000, 0)
    tmp_path.chmod(0o755)
    assert f"of {tmp_path}: it belongs to uid 1000" in next(check_run_dir(tmp_path / "pvc")).text


def test_a_file_in_its_place_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "is not a directory" in next(check_run_dir(tmp_path / "file", OWNERS)).text


def test_what_root_has_is_roots_alone(tmp_path: Path) -> None:
    site = write_site(tmp_path / "site")
    password = site / "etcd-password"
    password.write_text("secret\n")
    batch = load_site(site).batch
    etcd = replace(batch.etcd, auth_type="password", password_file=str(password))
    config = replace(load_site(site), batch=replace(batch, etcd=etcd))
    runtime, state = tmp_path / "run", tmp_path / "state"
    for path, mode in ((state, 0o700), (runtime, 0o755), (runtime / "locks", 0o700)):
        path.mkdir()
        path.chmod(mode)
    for name, mode in (("node.sock", 0o666), ("node.sock.root", 0o600)):
        (runtime / name).touch()
        (runtime / name).chmod(mode)
    password.chmod(0o600)

    def look() -> list[tuple[str, str | None]]:
        return [(each.text, each.fix) for each in check_files(config, runtime, state, os.geteuid())]

    ((text, fix),) = look()
    assert ("MiB are free for records" in text, fix) == (True, None)
    for path, mode, words in (
        (password, 0o644, "is open to others than root (mode 644)"),
        (state, 0o755, "is open to others than root (mode 755)"),
        (runtime, 0o700, "users cannot reach"),
        (runtime, 0o777, "is open to others than root (mode 777)"),
        (runtime / "node.sock", 0o600, "users cannot reach"),
        (runtime / "node.sock.root", 0o666, "is open to others than root (mode 666)"),
    ):
        right = path.stat().st_mode & 0o7777
        path.chmod(mode)
        ((text, fix),) = look()
        assert words in text
        assert fix == f"chmod {right:o} {path}"
        path.chmod(right)
    assert any("belongs to uid" in each.text for each in check_files(config, runtime, state, os.geteuid() + 1))
