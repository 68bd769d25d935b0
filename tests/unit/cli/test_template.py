# SPDX-License-Identifier: Apache-2.0
"""``pvc template``: every key's origin, and all problems at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pvc.cli import main
from pvc.config import load
from tests.unit.config.sites import write_site

TEMPLATES = """
base:
  machine-type: pc
  description: the base
web:
  inherits: base
  user-data:
    packages: [nginx]
  custom-args: [-device, i6300esb]
  hooks: {reachable: [/bin/tell, me], after-stop: sync}
"""


@pytest.fixture(autouse=True)
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    found = write_site(
        tmp_path / "site", templates=TEMPLATES, repos=f"repos: [{{name: site, path: {tmp_path}/none}}]\n"
    )
    monkeypatch.setattr(load, "SITE_DIR", found)
    monkeypatch.setenv("HOME", str(tmp_path))
    return found


def run_json(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> dict[str, object]:
    assert main.run(["template", *words, "--json"]) == code
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def test_list(capsys: pytest.CaptureFixture[str], site: Path) -> None:
    assert main.run(["template", "list"]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["TEMPLATE", "IMAGE", "RESOURCE-SET", "SOURCE", "DESCRIPTION"]
    assert [row.split() for row in rows] == [
        ["base", "-", "nat", f"{site}/templates.yaml:2", "the", "base"],
        ["web", "-", "nat", f"{site}/templates.yaml:5", "-"],
    ]


def test_show_tells_where_each_key_is_from(capsys: pytest.CaptureFixture[str], site: Path) -> None:
    assert main.run(["template", "show", "web"]) == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert rows["machine-type"].endswith(f"{site}/templates.yaml:3 (inherited from base)")
    assert " ".join(rows["user-data"].split()).endswith(f"#cloud-config … (3 lines) {site}/templates.yaml:7")
    assert "-device, i6300esb" in rows["custom-args"]
    assert "reachable: /bin/tell me, after-stop: sync" in rows["hooks"]
    assert rows["cpu-model"].split() == ["cpu-model", "auto", "default"]
    assert "the base" not in rows["description"]
    found = run_json(capsys, "show", "web")
    keys = found["keys"]
    assert isinstance(keys, list)
    assert {
        "key": "machine-type",
        "value": "pc",
        "source": f"{site}/templates.yaml:3",
        "inherited_from": "base",
    } in keys


def test_unknown_template_suggests_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["template", "show", "wbe"]) == 2
    assert "did you mean 'web'" in capsys.readouterr().err


def test_check_tells_all_at_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main.run(["template", "check"]) == 0
    assert "2 templates, no problems" in capsys.readouterr().out
    mine = tmp_path / "mine.yaml"
    mine.write_text("a:\n  inherits: wen\n  image: yes\nb:\n  inherits: c\nc:\n  inherits: b\n")
    assert main.run(["template", "check", str(mine)]) == 3
    err = capsys.readouterr().err
    assert "4 problems" in err
    assert f"{mine}:2: a.inherits: there is no template 'wen'; did you mean 'web'?" in err
    assert f"{mine}:3: a.image: yes is not an image's name" in err
    assert f"{mine}:5: b.inherits: leads back to itself: b -> c -> b" in err


def test_check_looks_for_images(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("a:\n  inherits: web\n  image: nothing\nb:\n  inherits: a\n  disks: [{size: 1G}, {image: none}]\n")
    problems = run_json(capsys, "check", str(mine), code=3)["problems"]
    assert isinstance(problems, list)
    assert [(each["line"], each["key"]) for each in problems] == [(3, "a.image"), (6, "b.disks[1].image")]
    assert {each["file"] for each in problems} == {str(mine)}
    assert main.run(["template", "check", str(tmp_path / "none.yaml")]) == 3
    assert "cannot be read" in capsys.readouterr().err
