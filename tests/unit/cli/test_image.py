"""pvc image, by its command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pvc.cli import main
from pvc.cli.image import format_size
from tests.unit.images.disks import bz_image, raw_disk


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home" / ".pvc").mkdir(parents=True)
    repos = f"repos:\n  - name: user\n    path: {tmp_path}/home/images\n"
    (tmp_path / "home" / ".pvc" / "repos.yaml").write_text(repos)
    (tmp_path / "disk").write_bytes(raw_disk())
    (tmp_path / "kernel").write_bytes(bz_image())
    return tmp_path


def test_import_list_show_delete(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kernel = ["--kernel", f"{home}/kernel", "--append", "root=/dev/vda", "--user", "root", "--description", "mine"]
    assert main.run(["image", "import", f"{home}/disk", "a", *kernel]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("imported user:a@1: raw, a disk of 1.0M")
    assert "copying disk (1.0M)" in err
    assert main.run(["image", "list", "-R", "user"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:7] == ["user", "a", "1", "raw", "1.0M", "1.0M", "kernel"]
    assert main.run(["image", "list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [each["uri"] for each in listed if each["repository"] == "user"] == ["user:a@1"]
    assert main.run(["image", "show", "a"]) == 0
    shown = capsys.readouterr().out
    assert "user         root" in shown
    assert "append       root=/dev/vda" in shown
    assert main.run(["image", "show", "user:a@1", "--json"]) == 0
    files = json.loads(capsys.readouterr().out)["files"]
    assert Path(files["kernel"]).read_bytes() == bz_image()
    assert main.run(["image", "delete", "-y", "a"]) == 0
    assert capsys.readouterr().out.startswith("removed user:a@1")
    assert main.run(["image", "show", "user:a"]) == 2


def test_a_damaged_image_is_shown_and_named(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["image", "import", f"{home}/disk", "a"]) == 0
    for path in (home / "home" / "images" / "data").rglob("?" * 64):
        path.unlink()
    capsys.readouterr()
    assert main.run(["image", "show", "a"]) == 7
    out, err = capsys.readouterr()
    assert "user:a@1" in out
    assert "cannot be used" in err
    assert "hint: import it again" in err


@pytest.mark.parametrize(
    ("argv", "code", "text"),
    [
        (["import", "/nowhere", "a"], 2, "cannot read /nowhere: No such file"),
        (["import", "{home}/disk", "a/b"], 2, "not a name"),
        (["import", "{home}/kernel", "a"], 2, "say -t raw"),
        (["import", "{home}/disk", "a", "-t", "qcow2"], 2, "no qcow2 header"),
        (["import", "{home}/disk", "a", "-t", "vmdk"], 2, "vmdk"),
        (["import", "{home}/disk", "a", "-R", "nope"], 2, "no image repository 'nope'"),
        (["import", "{home}/disk", "a", "--description", "a\nb"], 2, "one printable line"),
        (["show", "nope"], 2, "no image 'nope'"),
        (["delete", "-y", "nope"], 2, "no image 'nope'"),
        (["list", "-R", "nope"], 2, "no image repository 'nope'"),
        (["build", "nope"], 2, "no recipe 'nope'"),
        (["build", "debian", "--suite", "Bad Suite"], 3, "not a release"),
    ],
)
def test_mistakes(home: Path, capsys: pytest.CaptureFixture[str], argv: list[str], code: int, text: str) -> None:
    assert main.run(["image", *(word.format(home=home) for word in argv)]) == code
    out, err = capsys.readouterr()
    assert text in err
    assert out == ""
    assert not list((home / "home").rglob("*.json"))


def test_sizes_for_people() -> None:
    assert [format_size(n) for n in (0, 999, 1000, 10 << 20, 1 << 30, 3 << 41)] == [
        "0B", "999B", "1.0K", "10M", "1.0G", "6.0T",
    ]  # fmt: skip
