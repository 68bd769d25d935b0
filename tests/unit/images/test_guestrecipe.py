# SPDX-License-Identifier: Apache-2.0
"""Recipes from other images: what is read, what is made anew, and what a guest is told."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from pvc.errors import ConfigError
from pvc.images.guestrecipe import GuestRecipe, load_guest_recipe
from pvc.images.image import Blob, Format, Image
from pvc.plan.buildvm import GuestWork, plan_build_args, plan_build_seed

GOOD = """\
from: site:debian@2
description: more
packages: [vim-tiny]
files:
  - {path: /etc/motd, content: hello, mode: 0644}
commands: [echo a, echo b]
size: 10G
timeout: 20m
memory: 2G
cores: 4
"""
BASE = Image("debian", 2, 0.0, "me", Format.RAW, 512, Blob("0" * 64, 512))


def load(base: Path, text: str = GOOD) -> GuestRecipe | None:
    path = base / "mine.yaml"
    path.write_text(text)
    return load_guest_recipe(path)


def test_a_recipe_from_an_image(tmp_path: Path) -> None:
    recipe = load(tmp_path)
    assert recipe is not None
    assert (recipe.base, recipe.packages, recipe.commands) == ("site:debian@2", ("vim-tiny",), ("echo a", "echo b"))
    assert (recipe.timeout_s, recipe.memory_mib, recipe.size_bytes, recipe.cores) == (1200.0, 2048, 10 << 30, "4")
    assert recipe.files[0].mode == "0644"
    assert load(tmp_path, "suite: bookworm\n") is None


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (("from: site:debian@2", "from: ../x"), "mine.yaml:1: from: '../x' is not an image"),
        (("from: site:debian@2", "from: a\nextends: debian"), "mine.yaml:2: extends: .*either"),
        (("vim-tiny", "-o=x"), "mine.yaml:3: packages: '-o=x'"),
        (("path: /etc/motd", "path: etc/motd"), "mine.yaml:4: files: 'etc/motd'"),
        (("10G", "10X"), "mine.yaml:7: size"),
        (("20m", "20 fortnights"), "mine.yaml:8: timeout"),
        (("20m", "0s"), "mine.yaml:8: timeout: 0s is not between"),
        (("2G", "2M"), "mine.yaml:9: memory: 2M is not between"),
        (("cores: 4", "cores: 0"), "mine.yaml:10: cores: '0'"),
        (("description: more", 'description: "\\x1b"'), "mine.yaml:2: description: must be one line"),
        (("commands", "comands"), "unknown .*comands"),
        (("from:", "base: x\nfrom:"), "mine.yaml:1: base: unknown"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, change: tuple[str, str], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        load(tmp_path, GOOD.replace(*change))


def test_the_key_holds_what_goes_in(tmp_path: Path) -> None:
    recipe = load(tmp_path)
    assert recipe is not None
    key = recipe.key(BASE, flat=False)
    # How the same base is called, whose it is, and how long it may take change nothing.
    assert replace(recipe, base="debian", timeout="2h", memory="1G", cores="1").key(BASE, flat=False) == key
    assert recipe.key(replace(BASE, name="other", revision=7, owner="you", created=9.0), flat=False) == key
    others = [
        recipe.key(BASE, flat=True),
        recipe.key(replace(BASE, disk=Blob("1" * 64, 512)), flat=False),
        recipe.key(replace(BASE, append="quiet"), flat=False),
        replace(recipe, commands=("echo b", "echo a")).key(BASE, flat=False),
        replace(recipe, files=(replace(recipe.files[0], content="hello\n"),)).key(BASE, flat=False),
        replace(recipe, packages=()).key(BASE, flat=False),
        replace(recipe, size="11G").key(BASE, flat=False),
    ]
    assert len({key, *others}) == 1 + len(others)


WORK = GuestWork(
    ("vim-tiny", "less"), b"tar", ["echo a", "exit 3"], ["deb http://localhost:3142/debian @CODENAME@ main"],
    ['Acquire::http::Proxy "http://127.0.0.1:3128/";'],
)  # fmt: skip


def test_the_seed_has_all_that_the_guest_needs() -> None:
    seed = plan_build_seed(WORK, "token", "build-1")
    assert seed["packages"] == "vim-tiny less\n"
    assert (seed["command-1"], seed["command-2"], seed["files.tar"]) == ("echo a\n", "exit 3\n", b"tar")
    # The host's loopback device is not the guest's.
    assert seed["sources.list"] == "deb http://10.0.2.2:3142/debian @CODENAME@ main\n"
    assert seed["apt.conf"] == 'Acquire::http::Proxy "http://10.0.2.2:3128/";\n'
    assert "command-01" in plan_build_seed(replace(WORK, commands=["x"] * 10), "t", "i")
    bare = plan_build_seed(GuestWork((), b"", ()), "t", "i")
    assert not {"files.tar", "sources.list", "apt.conf"} & set(bare)
    assert bare["packages"] == ""


def test_a_network_is_there_or_not() -> None:
    assert "user,id=net0" in plan_build_args(5, network=True)
    assert not [each for each in plan_build_args(5, network=False) if "net" in each]


@pytest.mark.allow_run  # sh reads what the guest will run
@pytest.mark.parametrize("name", ["pvc-build", "pvc-clean"])
def test_the_scripts_are_shell(name: str) -> None:
    script = plan_build_seed(WORK, "token", "build-1")[name]
    assert isinstance(script, str)
    assert "@TOKEN@" not in script
    for argv in (["sh", "-n"], ["shellcheck", "-s", "sh", "-S", "warning", "-e", "SC1091,SC2086,SC2046", "-"]):
        done = subprocess.run(argv, input=script, text=True, capture_output=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
