# SPDX-License-Identifier: Apache-2.0
"""Directories of the host: the key, the option, and what neither takes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvc.config.mounts import join_mounts, parse_mount
from pvc.errors import UsageError
from pvc.model.vm import Mount
from tests.unit import filenames
from tests.unit.config.sites import write_site
from tests.unit.config.test_load import load_site, problems_of


def test_names_and_directories(tmp_path: Path) -> None:
    text = """
t:
  mount-points:
    home: '%{homedir}'
    /data: {path: '/scratch/%{vm_rank}/', readonly: yes, type: virtio-9p}
    sw: {path: /opt/sw, target: /opt/sw, type: virtio-fs}
u: {inherits: t, mount-points: {}}
"""
    templates = load_site(write_site(tmp_path, templates=text)).templates
    assert templates["t"].mount_points == (
        Mount("/home/anne", "/mnt/home", tag="home"),
        Mount("/scratch/%{vm_rank}", "/data", True),
        Mount("/opt/sw", "/opt/sw", tag="sw", type="virtiofs"),
    )
    assert templates["u"].mount_points == ()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{a: 7}", ".a: 7 is not a directory's path, or a mapping with one"),
        ("{a: {}}", ".a.path: is missing: a directory's path"),
        ("{a: {path: /x, type: nfs}}", ".a.type: 'nfs' is not 9p, virtio-9p, virtiofs or virtio-fs"),
        ("{a: {path: /x, read-only: yes}}", ".a.read-only: unknown key; did you mean 'readonly'?"),
        ("{a: x}", ".a: 'x' is not an absolute path"),
        ("{'a b': /x}", ".a b: is neither a name of at most 31 letters, digits, '_', '.' and '-' nor an absolute path"),
        ("{'/a b': /x}", "./a b: '/a b' is not an absolute path of plain characters for the guest"),
        ("{/: /x}", "./: '/' is not an absolute path of plain characters for the guest"),
        ("{/a/../etc: /x}", "./a/../etc: '/a/../etc' is not an absolute path of plain characters for the guest"),
        ("{/mnt/a: /x, a: /y}", ".a: /mnt/a has a directory already"),
        ("[a]", ": a list is not a mapping to directories"),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str, told: str) -> None:
    assert problems_of(write_site(tmp_path, templates=f"t: {{mount-points: {text}}}\n")) == [
        f"templates.yaml:1: t.mount-points{told}"
    ]


def test_option() -> None:
    assert parse_mount("/a:/b", "/here") == Mount("/a", "/b")
    assert parse_mount("sub/../x:/b:ro", "/here") == Mount("/here/x", "/b", True)
    assert parse_mount(".:/b/c:rw", "/here") == Mount("/here", "/b/c")
    assert parse_mount("sw=/opt/sw,ro", "/here") == Mount("/opt/sw", "/mnt/sw", True, "sw")
    assert parse_mount("/a=b:/b", "/here") == Mount("/a=b", "/b")
    assert parse_mount("sw=/opt/sw,type=virtiofs,ro", "/here") == Mount("/opt/sw", "/mnt/sw", True, "sw", "virtiofs")
    assert parse_mount("/a:/b:ro:type=virtio-9p", "/here") == Mount("/a", "/b", True)


@pytest.mark.parametrize(
    "text",
    [
        *("", "/a", "/a:", ":/b", "/a:b", "/a:/b:rx", "/a:/b:ro:x", "sw=", "/a:/b c", "/a:/$(x)"),
        *("/a:/b:type=nfs", "/a:/b:type", "sw=/a,type=", "sw=/a,type=9p:ro"),
    ],
)
def test_wrong_options(text: str) -> None:
    with pytest.raises(UsageError, match="--mount"):
        parse_mount(text, "/here")


@given(filenames.NAMES)
def test_every_name_of_a_directory(name: str) -> None:
    path = f"/d/{name}/e"
    assert parse_mount(f"{path}:/b", "/here") == Mount(path, "/b")
    assert parse_mount(f"{path}:/b:ro:type=virtiofs", "/here") == Mount(path, "/b", True, "", "virtiofs")
    assert parse_mount(f"sw={path},ro", "/here") == Mount(path, "/mnt/sw", True, "sw")
    assert parse_mount(f"./{name}/x:/b", "/here") == Mount(f"/here/{name}/x", "/b") or name.startswith("..")


@given(st.text(max_size=30))
def test_any_text_is_a_mount_or_a_usage_error(text: str) -> None:
    try:
        found = parse_mount(text, "/here")
    except UsageError:
        return
    assert found.source.startswith("/")
    assert found.target.startswith("/")
    assert not set(found.target) & set(" \t\n\"'`$;&|<>\\,")


def test_the_later_of_two_for_one_directory_counts() -> None:
    first = (Mount("/a", "/x"), Mount("/b", "/y"))
    assert join_mounts(first, (Mount("/c", "/x", True),)) == (Mount("/c", "/x", True), Mount("/b", "/y"))


@pytest.mark.parametrize("name", [name for name in filenames.SEEN if not re.search("[\ud800-\udfff]", name)])
def test_every_name_in_a_template(tmp_path: Path, name: str) -> None:
    """Those of which YAML can have the bytes at all: it is text."""
    path, hook = f"/d/{name}/e", f"{name}.sh"
    keys = {"mount-points": {"/data": path}, "hooks": {"reachable": [path, hook]}}
    text = f"t: {json.dumps(keys, ensure_ascii=False)}\n".replace("\x7f", "\\x7f")
    template = load_site(write_site(tmp_path, templates=text)).templates["t"]
    assert template.mount_points == (Mount(path, "/data"),)
    assert template.hooks.reachable == (path, hook)
