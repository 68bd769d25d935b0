# SPDX-License-Identifier: Apache-2.0
"""What builders of packages are told: plans compared as values, and mkosi's finishing script run on a small tree."""

from __future__ import annotations

import os
import re
import subprocess
import tarfile
from io import BytesIO
from pathlib import Path

import pytest

from pvc.errors import ConfigError, HostError
from pvc.images import mkosi, mmdebstrap
from pvc.images.aptsources import Source
from pvc.images.build import find_error
from pvc.images.recipe import Builder, Recipe, find_recipe, load_lineage, load_recipe
from pvc.images.stage import BuildHost, StagePlan

SOURCES = (Source("http://mirror/debian", "trixie", ("main",)), Source("http://mirror/s", "trixie-security", ("main",)))
PROXY = 'Acquire::http::Proxy "http://proxy:3128";'
WORK = Path("/work dir")


def recipe(**more: object) -> Recipe:
    values: dict[str, object] = {
        "description": "x", "suite": "trixie", "packages": ("busybox-static",), "append": "", "commands": ("echo 'a'",),
        "exclude": ("/usr/share/doc/*", "/usr/share/it's/*"), "include": ("/usr/share/doc/*/copyright",),
    }  # fmt: skip
    return Recipe(**(values | more))  # type: ignore[arg-type]


def plan(*stages: Recipe, root: bool = True) -> StagePlan:
    return mkosi.plan_stage(stages, SOURCES, WORK, BuildHost(root, (PROXY,)), "/bin/mkosi")


def packed(content: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=BytesIO(content)) as archive:
        found = {member.name: archive.extractfile(member) for member in archive.getmembers() if member.isfile()}
        return {name: stream.read() for name, stream in found.items() if stream is not None}


def test_mkosi_is_told_all_that_a_recipe_says() -> None:
    made = plan(recipe())
    assert made.argv[:2] == ("/bin/mkosi", "--directory=")
    assert made.argv[-1] == "build"
    assert [each for each in made.argv if each.startswith("--package=")] == [
        "--package=apt", "--package=?priority(required)", "--package=busybox-static",
    ]  # fmt: skip
    assert "--release=trixie" in made.argv
    assert not any(each.startswith("--base-tree") for each in made.argv)
    sources = made.files["mkosi/tree/etc/apt/sources.list.d/mkosi.sources"].decode()
    assert re.findall(r"^(?:URIs|Suites): (.*)$", sources, re.MULTILINE) == [
        "http://mirror/debian", "trixie", "http://mirror/s", "trixie-security",
    ]  # fmt: skip
    assert made.files["mkosi/tree/etc/apt/apt.conf.d/proxies"].decode() == f"{PROXY}\n"
    dpkg = made.files["mkosi/tree/etc/dpkg/dpkg.cfg.d/recipe"]
    assert dpkg.splitlines()[0] == b"path-exclude=/usr/share/doc/*"
    # The guest's own dpkg and apt go by the same; a proxy is the building machine's.
    guest = packed(made.files["mkosi/src/files.tar"])
    assert guest["etc/dpkg/dpkg.cfg.d/99pvc"] == dpkg
    assert guest["etc/apt/sources.list"].decode().splitlines() == [source.line for source in SOURCES]
    assert not any(b"proxy" in content for content in guest.values())


def test_mkosi_adds_to_what_a_recipe_extends() -> None:
    made = plan(recipe(), recipe(packages=("slurmd",), exclude=(), include=(), commands=("echo child",)))
    assert "--base-tree=/work dir/below.tar" in made.argv
    assert [each for each in made.argv if each.startswith("--package=")] == ["--package=slurmd"]
    assert made.files["mkosi/src/commands"] == b"echo child\n"
    assert packed(made.files["mkosi/src/files.tar"]) == {}
    # What dpkg leaves out, it leaves out of these packages too.
    assert b"path-exclude=/usr/share/doc/*" in made.files["mkosi/tree/etc/dpkg/dpkg.cfg.d/recipe"]


def test_mkosi_of_a_user_is_root_of_a_namespace_with_many_users() -> None:
    argv = plan(recipe(), root=False).argv
    assert argv[0] == "unshare"
    assert {"--map-auto", "--map-root-user", "--kill-child=KILL"} < set(argv[: argv.index("--")])
    assert argv[argv.index("--") + 1] == "/bin/mkosi"


@pytest.mark.allow_run  # the script that mkosi would run
def test_the_finishing_script_leaves_what_dpkg_would_have(tmp_path: Path) -> None:
    root, src, tools = (tmp_path / name for name in ("root", "src", "tools"))
    for path in ("usr/share/doc/a/copyright", "usr/share/doc/a/readme", "usr/share/doc/b/deep/er", "usr/share/it's/x",
                 "boot/loader/entries.srel", "etc/apt/sources.list.d/trixie.sources", "usr/sbin/tool",
                 "var/lib/dpkg/status"):  # fmt: skip
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text("x")
    (root / "efi").mkdir()
    (root / "etc" / "resolv.conf").touch()
    src.mkdir()
    tools.mkdir()
    made = plan(recipe())
    for name in ("files.tar", "commands"):
        (src / name).write_bytes(made.files[f"mkosi/src/{name}"])
    (tmp_path / "finish").write_bytes(made.files["mkosi/finish"])
    # Stands for mkosi's own, which changes into the tree: what it would run there is noted.
    (tools / "mkosi-chroot").write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >> {tmp_path}/ran\n')
    (tools / "mkosi-chroot").chmod(0o755)
    environment = os.environ | {"BUILDROOT": str(root), "SRCDIR": str(src), "PATH": f"{tools}:{os.environ['PATH']}"}
    for word in ("build", "final"):
        subprocess.run(["sh", tmp_path / "finish", word], env=environment, check=True, capture_output=True)
        assert (src / "root.tar").exists() == (word == "final")
    with tarfile.open(src / "root.tar") as archive:
        names = {member.name for member in archive.getmembers() if not member.isdir()}
    assert {name.removeprefix("./") for name in names} == {
        "etc/apt/apt.conf.d/99pvc", "etc/apt/sources.list", "etc/dpkg/dpkg.cfg.d/99pvc", "usr/sbin/tool",
        "usr/share/doc/a/copyright", "var/lib/dpkg/status", "var/lib/pvc-packages",
    }  # fmt: skip
    assert not (root / "usr/share/doc/b").exists()
    assert not (root / "efi").exists()
    first, second = (tmp_path / "ran").read_text().splitlines()
    assert first.endswith("sh -eu /work/src/commands")
    assert second.startswith("dpkg-query")


@pytest.mark.allow_run  # a program that says a version
@pytest.mark.parametrize(
    ("says", "text"), [(None, "there is none in PATH"), ("mkosi 14", "it is mkosi 14, older than 25"), ("x", "it is x")]
)
def test_a_mkosi_that_will_not_do_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str | None, text: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    if says is not None:
        (tmp_path / "mkosi").write_text(f"#!/bin/sh\necho '{says}'\n")
        (tmp_path / "mkosi").chmod(0o755)
    with pytest.raises(HostError, match=text) as caught:
        mkosi.find_mkosi()
    assert "--builder mmdebstrap" in (caught.value.find_hint() or "")
    (tmp_path / "mkosi").write_text("#!/bin/sh\necho 'mkosi 26~devel'\n")
    (tmp_path / "mkosi").chmod(0o755)
    assert mkosi.find_mkosi() == str(tmp_path / "mkosi")


def test_one_builder_makes_all_that_a_recipe_extends(tmp_path: Path) -> None:
    path = tmp_path / "child.yaml"
    path.write_text("extends: cluster\n")
    assert load_recipe(path).builder is Builder.MMDEBSTRAP
    path.write_text("extends: cluster\nbuilder: mkosi\n")
    assert {each.builder for each in load_lineage(path)} == {Builder.MKOSI}
    assert {each.builder for each in load_lineage(path, builder=Builder.MMDEBSTRAP)} == {Builder.MMDEBSTRAP}
    (tmp_path / "grandchild.yaml").write_text("extends: ./child.yaml\n")
    assert load_recipe(tmp_path / "grandchild.yaml").builder is Builder.MKOSI
    assert load_recipe(path).digest() != load_recipe(find_recipe("cluster")).digest()
    path.write_text("extends: cluster\nbuilder: nix\n")
    with pytest.raises(ConfigError, match=r"child\.yaml.*'nix' is none of"):
        load_recipe(path)


def test_mmdebstrap_is_told_all_that_a_recipe_says() -> None:
    made = mmdebstrap.plan_stage([recipe()], SOURCES, WORK, BuildHost(True, (PROXY,)))
    assert made.argv[-4:] == ("trixie", "/work dir/root.tar", *(source.line for source in SOURCES))
    assert "--variant=minbase" in made.argv
    assert f"--aptopt={PROXY}" in made.argv
    assert packed(made.files["files.tar"])["var/tmp/pvc-build"] == b"echo 'a'\n"
    assert made.result == "root.tar"


@pytest.mark.parametrize(
    ("lines", "error"),
    [
        (["I: begins", "E: no such package x", "W: and more", "I: ends"], "E: no such package x"),
        (
            ["\u2023  Running", "cat: /no: No such file", '\u2023 "finish" failed'],
            "cat: /no: No such file",
        ),
        (["\u2023 no space"], "\u2023 no space"),
        (
            ["I: installing", "cat: /no: No such file", "E: setup failed: E: command failed: x"],
            "cat: /no: No such file",
        ),
        ([], "no message"),
    ],
)
def test_the_line_that_says_what_went_wrong(lines: list[str], error: str) -> None:
    assert find_error(lines) == error
